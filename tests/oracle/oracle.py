#!/usr/bin/env python3
"""An exact reference of every detector: unbounded, single-threaded, plain Python, sharing no code with the server.

    oracle.py --format combined|jsonl [--config F.json] [--tools FILE] [--attacks] FILE...

Reads logs or records in order and writes alerts as JSON lines, ordered by deciding event; with --attacks, attacks instead. What
was dropped, and how many alerts there are of each kind, goes to standard error. The definitions are those of the detector page;
READINGS.md says how its open places are read (R1 and so on refer to it).

A configuration is JSON: {"detectors": {"brute_force": {"burst_events": 6}}, "login_endpoints": [...], "weightless_paths":
[...], "overrides": [{"application": 1, "host": "a", "path": "/b/", "detectors": {...}}]}; names of numbers as in DEFAULTS.
"""

import argparse
import copy
import gc
import hashlib
import json
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

from attacks import AttackBook
from records import EPOCH, FAILED, SUCCEEDED, UNKNOWN, FileReader, ascii_lower, is_login, is_weightless, network_of, open_log
from rules import KeyState, Leaky, Look, NumericRange, SequentialTest, ShareWindow, Window

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

# The whole table. Every number here is one of the page; the mutation test changes each of them.
DEFAULTS = {
    "late_us": 120 * SECOND,
    "ahead_us": 24 * HOUR,
    "refusal_us": 1 * HOUR,
    "login_endpoints": [],
    "weightless_paths": [],
    "overrides": [],
    "detectors": {
        "brute_force": {
            "burst_events": 5,
            "burst_leak_us": 10 * SECOND,
            "medium_events": 10,
            "medium_window_us": 10 * MINUTE,
            "slow_events": 20,
            "slow_window_us": 1 * HOUR,
            "hold_us": 5 * MINUTE,
        },
        "brute_force_attempts": {
            "fast_events": 30,
            "fast_window_us": 30 * SECOND,
            "slow_events": 20,
            "slow_window_us": 10 * MINUTE,
            "hold_us": 5 * MINUTE,
        },
        "user_brute_force": {"events": 10, "window_us": 30 * MINUTE, "hold_us": 30 * MINUTE},
        "credential_stuffing": {
            "burst_events": 5,
            "burst_leak_us": 10 * SECOND,
            "burst_distinct_last": 64,
            "shared_events": 10,
            "shared_window_us": 10 * MINUTE,
            "shared_last_attempts": 64,
            "shared_failed_percent": 50,
            "hold_us": 10 * MINUTE,
        },
        "user_many_sources": {
            "fast_events": 5,
            "fast_window_us": 10 * MINUTE,
            "slow_events": 10,
            "slow_window_us": 1 * HOUR,
            "hold_us": 30 * MINUTE,
        },
        "forced_browsing": {
            "failure_micronats": 2_302_585,
            "success_micronats": 641_854,
            "fires_at_micronats": 9_200_290,
            "reset_at_micronats": -4_605_160,
            "distinct_last": 64,
            "empty_after_us": 48 * HOUR,
            "hold_us": 5 * MINUTE,
        },
        "forced_browsing_count": {"events": 10, "leak_us": 10 * SECOND, "distinct_last": 64, "hold_us": 5 * MINUTE},
        "bola": {
            "range_events": 30,
            "range_window_us": 60 * SECOND,
            "range_spread": 37,
            "events": 120,
            "leak_us": SECOND // 2,
            "distinct_last": 64,
            "hold_us": 10 * MINUTE,
        },
        "multi_payload": {"events": 4, "window_us": 1 * HOUR, "hold_us": 1 * HOUR},
        "scanner": {"events": 2, "window_us": 1 * MINUTE, "hold_us": 5 * MINUTE},
        "probing": {"events": 4, "leak_us": 5 * SECOND, "distinct_last": 64, "hold_us": 5 * MINUTE},
        "crawl": {"events": 40, "leak_us": SECOND // 2, "distinct_last": 64, "hold_us": 1 * MINUTE},
    },
}

LEVELS = {
    "brute_force": "critical",
    "credential_stuffing": "critical",
    "multi_payload": "critical",
    "probing": "critical",
    "crawl": "info",
}  # all others: warning

PROBING_TYPES = frozenset(("ptrav", "sqli", "xss", "rce", "infoleak", "scanner"))
FAILURE_STATUSES = frozenset((400, 403, 404))
WEIGH_NOTHING = frozenset((301, 302, 303, 307, 308, 408, 429, 444, 499))

# --- rules of each row ------------------------------------------------------------------------------------------------


def brute_force_rules(n):
    return [
        Leaky(n["burst_events"], n["burst_leak_us"]),
        Window(n["medium_events"], n["medium_window_us"]),
        Window(n["slow_events"], n["slow_window_us"]),
    ]


def brute_force_attempts_rules(n):
    return [Window(n["fast_events"], n["fast_window_us"]), Window(n["slow_events"], n["slow_window_us"], emptied_by_success=True)]


def credential_stuffing_rules(n):
    return [
        Leaky(n["burst_events"], n["burst_leak_us"], n["burst_distinct_last"]),
        ShareWindow(n["shared_events"], n["shared_window_us"], n["shared_last_attempts"], n["shared_failed_percent"]),
    ]


def user_many_sources_rules(n):
    return [
        Window(n["fast_events"], n["fast_window_us"], distinct=True),
        Window(n["slow_events"], n["slow_window_us"], distinct=True),
    ]


def forced_browsing_rules(n):
    weights = n["failure_micronats"], n["success_micronats"], n["fires_at_micronats"], n["reset_at_micronats"]
    return [SequentialTest(*weights, n["distinct_last"], n["empty_after_us"])]


def bola_rules(n):
    return [NumericRange(n["range_events"], n["range_window_us"], n["range_spread"]), *distinct_leaky_rules(n)]


def distinct_leaky_rules(n):
    return [Leaky(n["events"], n["leak_us"], n["distinct_last"])]


RULES = {
    "brute_force": brute_force_rules,
    "brute_force_attempts": brute_force_attempts_rules,
    "user_brute_force": lambda n: [Window(n["events"], n["window_us"])],
    "credential_stuffing": credential_stuffing_rules,
    "user_many_sources": user_many_sources_rules,
    "forced_browsing": forced_browsing_rules,
    "forced_browsing_count": distinct_leaky_rules,
    "bola": bola_rules,
    "multi_payload": lambda n: [Window(n["events"], n["window_us"], distinct=True)],
    "scanner": lambda n: [Window(n["events"], n["window_us"])],
    "probing": distinct_leaky_rules,
    "crawl": distinct_leaky_rules,
}

# --- what each detector looks at: (detector, key kind, key value, scope host, scope endpoint, look) -------------------


class Eyes:
    """Tells what each detector sees of a record. Keeps one memory: which endpoints refused which sources (R16)."""

    def __init__(self, config, tools=()):
        self.config = config
        self.tools = [ascii_lower(name) for name in tools]
        self.refusals = {}

    def looks(self, record):
        """Everything that any detector looks at in this record, in the order of the table."""
        seen = []
        status_read = not record.flagged
        if status_read:
            seen += self.attempt_looks(record)
        if status_read and not record.hits:
            seen += self.browsing_looks(record)
        if record.object_id is not None and not record.hits:
            kind, value = ("session", f"{record.source} {record.session}") if record.session else ("source", record.source)
            endpoint = endpoint_text(record)
            seen.append(("bola", kind, value, record.host, endpoint, self.look(record, record.object_id)))
        for hit in record.hits:
            seen.append(("multi_payload", "source", record.source, "", None, self.look(record, hit.payload)))
        agent = ascii_lower(record.user_agent)
        if any(name in agent for name in self.tools):
            seen.append(("scanner", "source", record.source, "", None, self.look(record)))
        if any(hit.type in PROBING_TYPES for hit in record.hits):
            seen.append(("probing", "source", record.source, "", None, self.look(record, (record.path, record.query))))
        if record.method in ("GET", "HEAD") and not record.static:
            seen.append(("crawl", "source", record.source, record.host, None, self.look(record, record.template)))
        return seen

    @staticmethod
    def look(record, value=None, **more):
        return Look(record.time_us, value, request_id=record.request_id, **more)

    def attempt_looks(self, record):
        """What the five rows that count attempts see (R15 to R20)."""
        if not (is_login(record, self.config["login_endpoints"]) or (record.status == 401 and record.credentials)):
            return []
        outcome = self.outcome(record)
        failed, succeeded = outcome == FAILED, outcome == SUCCEEDED
        endpoint, source, user = endpoint_text(record), record.source, record.user
        seen = []
        if failed and not record.hits:
            seen.append(("brute_force", "source", source, record.host, endpoint, self.look(record)))
        if not record.hits:
            look = self.look(record, counted=not succeeded, empties=succeeded)
            seen.append(("brute_force_attempts", "source", source, record.host, endpoint, look))
        if failed and user:
            seen.append(("user_brute_force", "user", user, "", None, self.look(record)))
        counted = bool(user) and not succeeded
        look = self.look(record, user if counted else None, counted=counted, failed=failed)
        seen.append(("credential_stuffing", "source", source, "", None, look))
        if failed and user:
            seen.append(("user_many_sources", "user", user, "", None, self.look(record, network_of(source))))
        return seen

    def outcome(self, record):
        """How an attempt ended, the first rule that applies; remembers refusals (R16)."""
        place = record.application, record.source, record.endpoint
        refused_us = self.refusals.get(place)
        if record.status in (401, 403):
            self.refusals[place] = max(record.time_us, refused_us if refused_us is not None else record.time_us)
        if record.outcome in (FAILED, SUCCEEDED):
            return record.outcome
        path, status = ascii_lower(record.path), record.status
        if path.endswith("/wp-login.php") and status in (200, 302):
            return FAILED if status == 200 else SUCCEEDED
        if path.endswith("/oauth/token") and status == 200:
            return SUCCEEDED
        if status in (400, 401, 403, 422):
            return FAILED
        if 0 < status < 400 and refused_us is not None and record.time_us - refused_us < self.config["refusal_us"]:
            return SUCCEEDED
        return UNKNOWN

    def browsing_looks(self, record):
        """What the two rows of forced browsing see (R21, R22)."""
        status = record.status
        if status in WEIGH_NOTHING or 500 <= status <= 599 or status <= 0:
            return []
        if is_weightless(record.path, self.config["weightless_paths"]):
            return []
        failed = status in FAILURE_STATUSES
        look = self.look(record, record.template, failed=failed)
        seen = [("forced_browsing", "source", record.source, record.host, None, look)]
        if failed and not record.static:
            seen.append(("forced_browsing_count", "source", record.source, record.host, None, self.look(record, record.template)))
        return seen


def endpoint_text(record):
    """How a scope names an endpoint (R9)."""
    return f"{record.method} {record.template}" if record.method else record.template


# --- the oracle -------------------------------------------------------------------------------------------------------


def merged(base, changes):
    """`base` with `changes` laid over it; objects are merged, everything else is replaced. Unknown names are errors."""
    result = copy.deepcopy(base)
    for name, value in changes.items():
        if name not in result:
            raise KeyError(f"unknown setting {name!r}; known: {', '.join(sorted(result))}")
        result[name] = merged(result[name], value) if isinstance(result[name], dict) else value
    return result


class Oracle:
    """Feeds records to every key's state and collects the alerts."""

    def __init__(self, config=None, tools=(), defaults=DEFAULTS):
        self.config = merged(defaults, config or {})
        self.eyes = Eyes(self.config, tools)
        self.keys = {}
        self.alerts = []  # (detector, application, kind, value, host, endpoint, Alert)
        self.counts = Counter()
        self.input_index = 0
        self.scoped = [
            (override, {name: merged(self.config["detectors"][name], numbers) for name, numbers in override["detectors"].items()})
            for override in self.config["overrides"]
        ]

    def feed(self, record):
        """Applies one record; returns the alerts that it raised."""
        raised = []
        for detector, kind, value, host, endpoint, look in self.eyes.looks(record):
            counter, numbers = self.numbers_for(detector, record)
            key = (detector, counter, record.application, kind, value, host, endpoint)
            state = self.keys.get(key)
            if state is None:
                state = KeyState(RULES[detector](numbers), self.config["late_us"], numbers["hold_us"])
                self.keys[key] = state
            became, alert = state.look(look, self.input_index)
            self.counts[became] += 1
            if alert:
                raised.append((detector, record.application, kind, value, host, endpoint, alert))
        self.alerts += raised
        self.input_index += 1
        return raised

    def numbers_for(self, detector, record):
        """(which counter, its numbers): the first override that fits and names the detector, else the default (R44)."""
        for counter, (override, numbers) in enumerate(self.scoped, 1):
            if detector in numbers and fits(override, record):
                return counter, numbers[detector]
        return 0, self.config["detectors"][detector]

    def results(self):
        """All alerts as the objects of the page, ordered by deciding event."""
        return [alert_object(*alert) for alert in self.alerts]


def fits(override, record):
    """True if a record is within the application, host and path that an override names."""
    path = override.get("path")
    return (
        override.get("application", record.application) == record.application
        and same_host(override.get("host", record.host), record.host)
        and (path is None or record.path == path or (path.endswith("/") and record.path.startswith(path)))
    )


def same_host(one, other):
    """True if two hosts are the same but for the case of ASCII letters."""
    # Only bytes are lowered without regard to letters beyond ASCII.
    return one.encode("utf-8", "surrogateescape").lower() == other.encode("utf-8", "surrogateescape").lower()


def time_text(time_us):
    """RFC 3339 in UTC with microseconds."""
    moment = EPOCH + timedelta(microseconds=time_us)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond:06d}Z"


def readable(text):
    """Text as valid Unicode: bytes of a log that are no UTF-8 become replacement characters."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def alert_object(detector, application, kind, value, host, endpoint, alert):
    """The JSON object of an alert."""
    identity = json.dumps([detector, kind, value, application, host, endpoint, alert.first_us])
    return {
        "id": hashlib.blake2b(identity.encode(), digest_size=8).hexdigest(),
        "detector": detector,
        "key": {"kind": kind, "value": readable(value)},
        "application": application,
        "scope": scope_of(host, endpoint),
        "first": time_text(alert.first_us),
        "fired": time_text(alert.fired_us),
        "last": time_text(alert.last_us),
        "count": alert.count,
        "distinct": len(alert.values),
        "level": LEVELS.get(detector, "warning"),
        "evidence": alert.evidence,
    }


def scope_of(host, endpoint):
    """The scope of a key, as an alert object has it."""
    scope = {}
    if host:
        scope["host"] = readable(host)
    if endpoint is not None:
        scope["endpoint"] = readable(endpoint)
    return scope


def alert_place(alert):
    """Whom and what an alert object is about, as text."""
    return json.dumps([alert[name] for name in ("detector", "key", "application", "scope")], sort_keys=True)


def read_tools(path):
    """Names of attack tools, one a line; empty lines and lines that begin with # are none."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--format", choices=("combined", "jsonl"), default="combined")
    parser.add_argument("--config", help="JSON file laid over the defaults")
    parser.add_argument("--tools", help="names of attack tools, one a line", default=Path(__file__).with_name("tools.txt"))
    parser.add_argument("--attacks", action="store_true", help="print attacks instead of alerts")
    parser.add_argument("files", nargs="+", metavar="FILE")
    arguments = parser.parse_args()

    gc.disable()  # nothing here forms cycles, and millions of small objects make collections slow
    config = json.loads(Path(arguments.config).read_text(encoding="utf-8")) if arguments.config else {}
    oracle = Oracle(config, read_tools(arguments.tools))
    book = AttackBook()
    reader = FileReader(arguments.format, oracle.config["ahead_us"])
    for path in arguments.files:
        with open_log(path) as lines:
            for record in reader.records(lines):
                book.add_record(record)
                for alert in oracle.feed(record):
                    book.add_alert(*alert)
    for line in book.results() if arguments.attacks else oracle.results():
        print(json.dumps(line))
    summary = {**reader.counts, "records": oracle.input_index, **oracle.counts, "keys": len(oracle.keys)}
    summary["alerts"] = dict(Counter(alert[0] for alert in oracle.alerts))
    print(json.dumps(summary), file=sys.stderr)


if __name__ == "__main__":
    main()
