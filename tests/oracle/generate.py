#!/usr/bin/env python3
"""Seeded generators of labelled traffic, as records in JSON lines.

    generate.py --scenario NAME [--seed N] [--truth FILE] [--shuffle US] > records.jsonl
    generate.py --scenario NAME --log > access.log
    generate.py --list

The truth is one JSON line a label: {"detector", "key", "expected", "label"}: whether this detector must raise an alert on this
key (a source or a user). The detector "any" labels innocents: no detector may. Same scenario, same seed: same bytes. With
--shuffle a record moves among the others as if it were written up to that many µs late; its time stays. Labels hold for up to 2
s.
"""

import argparse
import itertools
import json
import random
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

START_US = 1_700_000_000_000_000
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0"


class Traffic:
    """Records and labels under construction; one random source for everything."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.records = []
        self.truth = []
        self.keys = itertools.count(1)

    def send(self, time_us, ip, path, status=200, method="GET", **more):
        self.records.append(
            {"event_us": int(time_us), "ip": ip, "method": method, "path": path, "status": status, "user_agent": BROWSER, **more}
        )

    def label(self, detector, key, expected, label):
        self.truth.append({"detector": detector, "key": key, "expected": expected, "label": label})

    def address(self):
        """A new IPv4 address, each in a /24 of its own."""
        number = next(self.keys)
        return f"{20 + (number >> 16)}.{number >> 8 & 255}.{number & 255}.{self.random.randrange(1, 255)}"

    def user(self):
        return f"{self.random.getrandbits(63) | 1:016x}"

    def times(self, start_us, count, every_us):
        """`count` times, `every_us` apart, each late by up to a twentieth of that."""
        return [start_us + k * every_us + self.random.randrange(every_us // 20 + 1) for k in range(count)]

    def finished(self, in_order=True):
        if in_order:
            self.records.sort(key=lambda record: record["event_us"])
        for index, record in enumerate(self.records):
            record["request_id"] = f"{index:032x}"
        return self.records, self.truth


# --- people -----------------------------------------------------------------------------------------------------------


def person(traffic, ip, start_us, pages=12, user=None):
    """Somebody who reads pages, each with its pictures and scripts, follows a dead link now and then, and perhaps logs in."""
    now = start_us
    source = traffic.random
    if user:
        now = log_in(traffic, ip, now, user)
    for page in range(pages):
        now += source.randrange(2 * SECOND, 40 * SECOND)
        path = f"/articles/{source.choice(('garden', 'kitchen', 'travel', 'music'))}-{source.randrange(500)}x"
        traffic.send(now, ip, path, source.choice((200, 200, 200, 304, 301)))
        for _ in range(source.randrange(4, 12)):
            extension = source.choice(("css", "js", "png", "jpg", "woff2"))
            traffic.send(
                now + source.randrange(SECOND), ip, f"/assets/{source.randrange(300)}v.{extension}", source.choice((200, 304))
            )
        if page and source.random() < 0.05:
            traffic.send(now + SECOND, ip, f"/old/page-{source.randrange(100)}x", 404)
    return now


def log_in(traffic, ip, now, user):
    """A login form, filled in wrongly at times; returns when the user was in."""
    traffic.send(now, ip, "/login")
    while traffic.random.random() < 0.15:
        now += traffic.random.randrange(5 * SECOND, 15 * SECOND)
        traffic.send(now, ip, "/login", 401, "POST", user=user)
    now += traffic.random.randrange(5 * SECOND, 15 * SECOND)
    traffic.send(now, ip, "/login", 302, "POST", user=user, outcome="succeeded")
    return now


def people(traffic, count=60):
    """People, each at an address of his own; one in three logs in."""
    for number in range(count):
        ip = traffic.address()
        user = traffic.user() if number % 3 == 0 else None
        person(traffic, ip, START_US + traffic.random.randrange(HOUR), user=user)
        traffic.label("any", ip, False, "person")


def people_behind_one_address(traffic, count=40):
    """An office: everybody comes from one address, and logs in within ten minutes in the morning."""
    ip = traffic.address()
    for _ in range(count):
        person(traffic, ip, START_US + traffic.random.randrange(10 * MINUTE), user=traffic.user())
    traffic.label("any", ip, False, "office")
    return ip


# --- attacks: one event each of what a detector counts ------------------------------------------------------------------


def guess(traffic, now, ip, number, user):
    traffic.send(now, ip, "/login", 401, "POST", user=user)


def attempt(traffic, now, ip, number, user):
    traffic.send(now, ip, "/administrator/index.php", 200, "POST", user=user)


def stuff(traffic, now, ip, number, user):
    traffic.send(now, ip, "/login", 401, "POST", user=traffic.user())


def guess_from_one_network(traffic, now, ip, number, user):
    traffic.send(now, f"{ip.rsplit('.', 1)[0]}.{number % 250 + 1}", "/login", 401, "POST", user=user)


def guess_from_many_networks(traffic, now, ip, number, user):
    traffic.send(now, traffic.address(), "/login", 401, "POST", user=user)


def probe_path(traffic, now, ip, number, user):
    traffic.send(now, ip, f"/backup-{number}x.{traffic.random.choice(('zip', 'sql', 'php'))}", traffic.random.choice((404, 403)))


def enumerate_numbers(traffic, now, ip, number, user):
    traffic.send(now, ip, f"/api/orders/{70000 + number}")


def enumerate_hashes(traffic, now, ip, number, user):
    traffic.send(now, ip, f"/api/files/f{number:04x}{traffic.random.getrandbits(64):016x}")


def hit(traffic, now, ip, number, user):
    hits = [{"type": traffic.random.choice(("sqli", "xss", "rce")), "payload": f"payload {number}", "point": "get_q"}]
    traffic.send(now, ip, f"/search?q={number}", 403, hits=hits, flags=["blocked"])


def scan(traffic, now, ip, number, user):
    traffic.send(now, ip, "/", user_agent="Mozilla/5.00 (Nikto/2.1.5) (Evasions:None)")


def crawl_page(traffic, now, ip, number, user):
    traffic.send(now, ip, f"/catalogue/thing-{number}x")


# detector: [(speed, event, every_us, events that fire)], fastest first. The rates leave 5 % for jitter.
ATTACKS = {
    "brute_force": [
        ("fast", guess, SECOND // 10, 6),
        ("medium", guess, 50 * SECOND, 10),
        ("slow", guess, 170 * SECOND, 20),
    ],
    "brute_force_attempts": [("fast", attempt, SECOND, 20), ("slow", attempt, 30 * SECOND, 20)],
    "user_brute_force": [("fast", guess_from_one_network, SECOND, 10), ("slow", guess_from_one_network, 190 * SECOND, 10)],
    "credential_stuffing": [("fast", stuff, SECOND // 10, 6), ("slow", stuff, 60 * SECOND, 10)],
    "user_many_sources": [
        ("fast", guess_from_many_networks, 10 * SECOND, 5),
        ("slow", guess_from_many_networks, 390 * SECOND, 10),
    ],
    "forced_browsing": [("fast", probe_path, SECOND // 10, 4), ("slow", probe_path, HOUR, 4)],
    "forced_browsing_count": [("fast", probe_path, SECOND // 10, 11)],
    "bola": [("range", enumerate_numbers, SECOND, 30), ("fast", enumerate_hashes, 2000, 121)],
    "multi_payload": [("fast", hit, 10 * SECOND, 4), ("slow", hit, 1000 * SECOND, 4)],
    "scanner": [("fast", scan, SECOND, 2), ("slow", scan, 50 * SECOND, 2)],
    "probing": [("fast", hit, SECOND // 10, 5)],
    "crawl": [("fast", crawl_page, 5000, 41)],
}
# detector: [(event, every_us)]: a rate at least 20 % below every rule, however long it goes on.
TOO_SLOW = {
    "brute_force": [(guess, 240 * SECOND)],
    "brute_force_attempts": [(attempt, 40 * SECOND)],
    "user_brute_force": [(guess_from_one_network, 240 * SECOND)],
    "credential_stuffing": [(stuff, 90 * SECOND)],
    "user_many_sources": [(guess_from_many_networks, 480 * SECOND)],
    "forced_browsing_count": [(probe_path, 13 * SECOND)],
    "bola": [(enumerate_numbers, 5 * SECOND // 2), (enumerate_hashes, 3 * SECOND // 5)],
    "multi_payload": [(hit, 1500 * SECOND)],
    "scanner": [(scan, 75 * SECOND)],
    "probing": [(hit, 13 * SECOND // 2)],
    "crawl": [(crawl_page, 5 * SECOND // 8)],
}
BY_USER = ("user_brute_force", "user_many_sources")


def attack(traffic, detector, event, every_us, count, expected, label, ip=None):
    """One attacker who makes `count` events; labelled with his source, or the user whom he attacks."""
    ip, user = ip or traffic.address(), traffic.user()
    start_us = START_US + traffic.random.randrange(MINUTE)
    for number, now in enumerate(traffic.times(start_us, count, every_us)):
        event(traffic, now, ip, number, user)
    traffic.label(detector, user if detector in BY_USER else ip, expected, label)


def thresholds(traffic, only=None):
    """Each attack at each speed: one event below the threshold, at it, one above, and ten times it."""
    for detector, speeds in ATTACKS.items():
        if only in (None, detector):
            for speed, event, every_us, fires in speeds:
                for count, name in ((fires - 1, "below"), (fires, "at"), (fires + 1, "above"), (10 * fires, "far above")):
                    attack(traffic, detector, event, every_us, count, count >= fires, f"{speed}, {name}")


def too_slow(traffic):
    """Attacks 20 % below the rate of every rule, for 100 events: nobody can tell, and no alert may be raised."""
    for detector, kinds in TOO_SLOW.items():
        for event, every_us in kinds:
            attack(traffic, detector, event, every_us, 100, False, "too slow")


def apart(traffic):
    """Everybody stays 20 % away from every threshold: attackers with half as many events again as they need, a fifth closer
    together, others with a fifth less than that or a fifth slower, and people. What small errors of time cannot change."""
    for detector, speeds in ATTACKS.items():
        for speed, event, every_us, fires in speeds:
            attack(traffic, detector, event, every_us * 4 // 5, fires + max(2, fires // 2), True, f"{speed}, clearly above")
            attack(traffic, detector, event, every_us, fires * 4 // 5, False, f"{speed}, clearly below")
    for detector, kinds in TOO_SLOW.items():
        for event, every_us in kinds:
            attack(traffic, detector, event, every_us, 40, False, "too slow")
    people(traffic, 20)


def mixed_failures(traffic):
    """Crawlers of badly kept sites: one dead link in ten stays silent, two in three are found."""
    for share, expected in ((10, False), (3, True)):
        ip = traffic.address()
        for number, now in enumerate(traffic.times(START_US, 300, 20 * SECOND)):
            failed = number % share == 0 if share == 10 else number % share != 0
            traffic.send(now, ip, f"/walk-{number}x", 404 if failed else 200)
        traffic.label("forced_browsing", ip, expected, f"dead links, pattern of {share}")


def distributed(traffic):
    """One user guessed at from 200 addresses, once each; no address is suspicious, the user is under attack."""
    user = traffic.user()
    for now in traffic.times(START_US, 200, 10 * SECOND):
        ip = traffic.address()
        traffic.send(now, ip, "/login", 401, "POST", user=user)
        traffic.label("any", ip, False, "one of many addresses")
    traffic.label("user_brute_force", user, True, "distributed")
    traffic.label("user_many_sources", user, True, "distributed")
    people(traffic, 20)


def attackers_behind_one_address(traffic):
    """Offices where one machine attacks: the people's requests do not hide it."""
    for detector, event, every_us, count in (
        ("brute_force", guess, SECOND // 10, 60),
        ("credential_stuffing", stuff, SECOND // 2, 60),
        ("multi_payload", hit, 10 * SECOND, 10),
        ("scanner", scan, SECOND, 10),
        ("bola", enumerate_numbers, SECOND // 2, 60),
    ):
        ip = traffic.address()
        for _ in range(10):
            person(traffic, ip, START_US + traffic.random.randrange(10 * MINUTE), user=traffic.user())
        attack(traffic, detector, event, every_us, count, True, "behind one address", ip=ip)


def spoofed(traffic, times):
    """Attackers of every kind, and `times` as many records of sources that are seen once: 404, failed logins, hits."""
    for detector, speeds in ATTACKS.items():
        for speed, event, every_us, fires in speeds:
            attack(traffic, detector, event, every_us, 2 * fires, True, speed)
    real = [record["event_us"] for record in traffic.records]
    source = traffic.random
    for number in range(times * len(real)):
        now = source.choice(real)
        ip = f"2001:{source.getrandbits(16):x}:{number >> 16:x}:{number & 0xFFFF:x}::1" if number % 2 else spoofed_ipv4(number)
        kind = number % 3
        if kind == 0:
            traffic.send(now, ip, f"/{source.getrandbits(40):x}x", 404)
        elif kind == 1:
            traffic.send(now, ip, "/login", 401, "POST", user=traffic.user())
        else:
            traffic.send(now, ip, "/search?q=1", 403, hits=[{"type": "sqli", "payload": f"{number}", "point": "get_q"}])


def crowded(traffic, sources, failures, within_us, users=0):
    """Attackers of every kind and people, and so many sources that fail to log in a few times each, a minute apart, that the
    lists of their keys need more room than a server with few keys has. They begin within a time, one half of them among the
    attackers' events, and each guesses at the same few users, or at nobody."""
    for detector, speeds in ATTACKS.items():
        for speed, event, every_us, fires in speeds:
            attack(traffic, detector, event, every_us, 2 * fires, True, speed)
    people(traffic, 20)
    source = traffic.random
    real = [now for record in traffic.records if (now := record["event_us"]) < START_US + within_us]
    names = [{"user": traffic.user()} for _ in range(users)] or [{}]
    for number in range(sources):
        start_us = source.choice(real) if number % 2 else START_US + source.randrange(within_us)
        for step, now in enumerate(traffic.times(start_us, failures, 61 * SECOND)):
            traffic.send(now, spoofed_ipv4(number), "/login", 401, "POST", **names[step % len(names)])


def spoofed_ipv4(number):
    """Addresses that no attacker of the scenario has."""
    return f"{100 + (number >> 24)}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


# --- everything at once, for comparing two programs ---------------------------------------------------------------------

CHAOS_SOURCES = (
    "10.0.0.1 10.0.0.2 10.0.1.9 2001:db8:1:1::5 2001:db8:1:1:ffff::6 2001:db8:1:2::1 ::ffff:10.0.0.1 localhost".split()
)
CHAOS_PATHS = (
    "/login /LOGIN.php /x/wp-login.php /oauth/token /a/session /p/{n}x /p/{n}x?q={n} /p/%7{d}{n}x //p//{n}x /p/./{n}x "
    "/a/../p/{n}x /item/{n} /user/{d}/item/{n} /file/{h} /s/{n}x.png /s/{n}x.PHP /favicon.ico /.well-known/{n}x "
    "/p/{n}x#frag http://h/p/{n}x / /%2e%2e/{n}x/ *"
).split()
CHAOS_STEPS_US = (
    0,
    0,
    1,
    1000,
    400_000,
    SECOND,
    SECOND,
    5 * SECOND,
    10 * SECOND,
    30 * SECOND,
    60 * SECOND,
    180 * SECOND,
    300 * SECOND,
)
CHAOS_CAMPAIGNS = (
    {"method": "POST", "path": "/login", "status": 401},
    {"method": "POST", "path": "/login", "status": 401, "outcome": "unknown", "user": f"{1:016x}"},
    {"method": "POST", "path": "/login", "status": 401, "outcome": "failed", "user": f"{1:016x}", "ip": "10.7.{j}.1"},
    {"method": "POST", "path": "/auth", "status": 500, "outcome": "unknown"},
    {"method": "POST", "path": "/auth", "status": 200},
    {"method": "GET", "path": "/item/{j}", "status": 200},
    {"method": "GET", "path": "/item/{n}", "status": 404},
    {"method": "GET", "path": "/file/{h}", "status": 200},
    {"method": "GET", "path": "/c/{j}x", "status": 200},
    {"method": "GET", "path": "/c/{j}x"},
    {"method": "GET", "path": "/q?p={j}", "status": 200, "hits_share": 1.0},
    {"method": "GET", "path": "/", "user_agent": "sqlmap/1.8"},
)
CHAOS_TYPES = "sqli xss rce ptrav infoleak scanner crlf redir".split()


def chaos(traffic, campaigns=400):
    """Random campaigns over few keys, with times that step back, flags, hits and every status: no labels, many alerts."""
    source = traffic.random
    now = START_US
    for _ in range(campaigns):
        fixed = chaos_campaign(source)
        step = source.choice(CHAOS_STEPS_US)
        for number in range(source.choice((1, 3, 6, 12, 30, 45, 130))):
            now += step if source.random() < 0.9 else source.choice(CHAOS_STEPS_US)
            record = {**chaos_record(source), **fixed}
            record["ip"] = record["ip"].replace("{j}", str(number))
            record["path"] = chaos_path(source, record["path"].replace("{j}", str(number)))
            record["hits"] = chaos_hits(source, record)
            back = source.choice((0, 0, 0, 0, 0, 0, 0, SECOND, 59 * SECOND, 120 * SECOND, 120 * SECOND + 1))
            if source.random() < 0.002:
                back = -25 * HOUR  # a broken clock: dropped unless the file is that far already
            traffic.records.append({"event_us": now - back, **record})
        now += source.choice((0, SECOND, MINUTE, 10 * MINUTE, HOUR, 20 * HOUR)) if source.random() < 0.5 else 0


def chaos_campaign(source):
    """What stays the same during a campaign: a random part of a record, with a path and status that suit it."""
    record = chaos_record(source)
    fixed = {
        name: record[name]
        for name in ("ip", "host", "application", "method", "path", "status", "session")
        if source.random() < 0.8
    }
    if source.random() < 0.5:
        fixed |= {"hits_share": 0.0, "application": -1, **source.choice(CHAOS_CAMPAIGNS)}
    return fixed


def chaos_record(source):
    users = [f"{number:016x}" for number in range(1, 30)]
    return {
        "ip": source.choice(CHAOS_SOURCES),
        "method": source.choice(("GET", "GET", "GET", "POST", "POST", "PUT", "HEAD", "")),
        "path": source.choice(CHAOS_PATHS),
        "status": source.choice((200, 200, 302, 304, 400, 401, 403, 404, 404, 404, 422, 429, 499, 500)),
        "host": source.choice(("", "a.example", "b.example")),
        "application": source.choice((-1, -1, 3)),
        "session": source.choice(("", "", "00000000000000b1", "00000000000000b2")),
        "user": source.choice(["", *users]) if source.random() < 0.8 else users[0],
        "outcome": source.choice(("unknown", "unknown", "unknown", "failed", "succeeded")),
        "user_agent": "Nikto/2.1" if source.random() < 0.01 else BROWSER,
        "flags": [flag for flag in ("blocked", "denylist", "graylist", "credentials") if source.random() < 0.02],
        "hits_share": 0.1,
    }


def chaos_path(source, path):
    number, digit = source.choice((source.randrange(12), source.randrange(100), source.randrange(100000))), source.randrange(10)
    return path.replace("{n}", str(number)).replace("{d}", str(digit)).replace("{h}", f"{source.getrandbits(80):020x}")


def chaos_hits(source, record):
    if source.random() >= record.pop("hits_share"):
        return []
    count = source.choice((1, 1, 1, 2, 5))
    return [{"type": source.choice(CHAOS_TYPES), "payload": f"p{source.randrange(20)}", "point": "get_q"} for _ in range(count)]


def disorder(traffic):
    """All of `thresholds` and people; `scenario` writes it out of order by up to 2 s."""
    thresholds(traffic)
    people(traffic, 20)


def everything(traffic):
    people(traffic)
    people_behind_one_address(traffic)
    thresholds(traffic)
    too_slow(traffic)
    mixed_failures(traffic)
    distributed(traffic)
    attackers_behind_one_address(traffic)


SCENARIOS = {
    "people": people,
    "nat": people_behind_one_address,
    "thresholds": thresholds,
    "too-slow": too_slow,
    "apart": apart,
    "mixed": mixed_failures,
    "distributed": distributed,
    "nat-attack": attackers_behind_one_address,
    "disorder": disorder,
    "chaos": chaos,
    "spoofed10": lambda traffic: spoofed(traffic, 10),
    "spoofed100": lambda traffic: spoofed(traffic, 100),
    "crowded": lambda traffic: crowded(traffic, 12_000, 3, 2 * HOUR),
    "crowded-attackers": lambda traffic: crowded(traffic, 2_500, 12, 2 * MINUTE, users=12),
    "all": everything,
    **{detector: lambda traffic, detector=detector: thresholds(traffic, detector) for detector in ATTACKS},
}


def scenario(name, seed):
    """(records, labels) of a scenario."""
    traffic = Traffic(f"{name} {seed}")
    SCENARIOS[name](traffic)
    lines, truth = traffic.finished(in_order=name != "chaos")
    return (shuffled(lines, 2 * SECOND, seed) if name == "disorder" else lines), truth


def shuffled(lines, up_to_us, seed):
    """The records in the order of a log that is written up to so many µs late."""
    source = random.Random(f"shuffle {seed}")
    return sorted(lines, key=lambda record: record["event_us"] + source.randrange(up_to_us))


SYSLOG_PREFIXES = ("", "", "", "Nov 14 22:13:20 web nginx[28]: ", "<190>1 2023-11-14T22:13:20Z web nginx 12 - - ")
RUBBISH = ("", "-", "rubbish", '10.0.0.1 - - [32/Nov/2023:22:13:20 +0000] "GET / HTTP/1.1" 404 1 "-" "-"')
NO_REQUESTS = ("-", "", "\\x16\\x03\\x01", "GET /x", "GET  HTTP/1.1")


def log_line(record, source):
    """A record as a line of an access log, with what its format can hold."""
    zone_minutes = source.choice((0, 0, 60, -330))
    zone = timezone(timedelta(minutes=zone_minutes))
    time = datetime.fromtimestamp(record["event_us"] // SECOND, zone).strftime("%d/%b/%Y:%H:%M:%S %z")
    host = record.get("host", "")
    prefix = source.choice(SYSLOG_PREFIXES) + (f"{host} " if host else "")
    user = "bob" if "credentials" in record.get("flags", ()) else "-"
    request = f"{record['method']} {record['path']} HTTP/1.1" if record["method"] else source.choice(NO_REQUESTS)
    return f'{prefix}{record["ip"]} - {user} [{time}] "{request}" {record["status"]} 1 "-" "{record["user_agent"]}"'


def log_lines(records, seed):
    """The lines of an access log; one in a hundred is rubbish."""
    source = random.Random(f"log {seed}")
    for record in records:
        if source.random() < 0.01:
            yield source.choice(RUBBISH)
        yield log_line(record, source)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--scenario", choices=SCENARIOS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--truth", help="file to write the labels to")
    parser.add_argument("--shuffle", type=int, default=0, metavar="US", help="write records up to so many µs late")
    parser.add_argument("--log", action="store_true", help="write an access log instead of records")
    parser.add_argument("--list", action="store_true", help="print the names of the scenarios")
    arguments = parser.parse_args()
    if arguments.list or not arguments.scenario:
        print("\n".join(SCENARIOS))
        return
    lines, truth = scenario(arguments.scenario, arguments.seed)
    if arguments.shuffle:
        lines = shuffled(lines, arguments.shuffle, arguments.seed)
    for line in log_lines(lines, arguments.seed) if arguments.log else map(json.dumps, lines):
        sys.stdout.write(line + "\n")
    if arguments.truth:
        Path(arguments.truth).write_text("".join(json.dumps(label) + "\n" for label in truth), encoding="utf-8")


if __name__ == "__main__":
    main()
