"""Tests of the oracle: the hand-computed cases, and that every constant of its table matters.

cd tests/oracle && python3 -m unittest
"""

import copy
import functools
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import cases
import forgetting
import generate
import oracle
import records
import rules
from attacks import AttackBook
from records import FileReader, Record

TOOLS = oracle.read_tools(Path(__file__).with_name("tools.txt"))
ALL_CASES = [{"number": number, **case} for number, case in enumerate(cases.load())]


@functools.cache
def records_of(number, ahead_us):
    """The records of a case, read once; the oracle does not change them."""
    line_format, lines = cases.lines_of(ALL_CASES[number])
    return list(FileReader(line_format, ahead_us).records(lines))


def alerts_of(case, defaults=None):
    """The alerts of the case's detector, in the form of `expected`."""
    subject = oracle.Oracle(case.get("config"), TOOLS, defaults or oracle.DEFAULTS)
    for record in records_of(case["number"], subject.config["ahead_us"]):
        subject.feed(record)
    return [relative(alert) for alert in subject.results() if alert["detector"] == case["detector"]]


def relative(alert):
    """An alert object cut down to what the cases state, times in µs after their base."""
    kept = {name: alert[name] for name in ("detector", "key", "scope", "count", "distinct")}
    return kept | {name: records.time_us_of(alert[name]) - cases.BASE_US for name in ("first", "fired")}


def in_order(alerts):
    return sorted(json.dumps(alert, sort_keys=True) for alert in alerts)


def passes(case, defaults=None):
    return in_order(alerts_of(case, defaults)) == in_order(case["expected"])


class HandComputed(unittest.TestCase):
    """The oracle against values computed by hand."""

    def test_cases(self):
        for case in ALL_CASES:
            with self.subTest(file=case["file"], case=case["name"], why=case["why"]):
                self.assertEqual(in_order(alerts_of(case)), in_order(case["expected"]))

    def test_every_detector_has_cases_that_fire_and_that_do_not(self):
        for detector in oracle.DEFAULTS["detectors"]:
            fires = {bool(case["expected"]) for case in ALL_CASES if case["detector"] == detector}
            self.assertEqual(fires, {True, False}, detector)


def number_paths(table, prefix=()):
    """Paths of all numbers in a nested table."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from number_paths(value, (*prefix, name))
        elif isinstance(value, int):
            yield (*prefix, name)


def changed(path, by):
    """The defaults with one number changed."""
    table = copy.deepcopy(oracle.DEFAULTS)
    place = table
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] += by
    return table


class Mutation(unittest.TestCase):
    """A constant changed by one, or a name taken from a list, must make a case fail."""

    def test_every_number_by_one(self):
        numbers = list(number_paths(oracle.DEFAULTS))
        self.assertGreater(len(numbers), 50)
        for path in numbers:
            relevant = [case for case in ALL_CASES if path[0] != "detectors" or case["detector"] == path[1]]
            for by in (-1, 1):
                table = changed(path, by)
                with self.subTest(constant=".".join(path), by=by):
                    self.assertFalse(all(passes(case, table) for case in relevant), "no case notices")

    def shrunk(self, owner, name, file):
        """Takes each element of a set away in turn; a case of the file must notice each."""
        whole = getattr(owner, name)
        relevant = [case for case in ALL_CASES if case["file"] == file]
        for element in whole:
            rest = type(whole)(other for other in whole if other != element)
            with self.subTest(table=name, without=element), mock.patch.object(owner, name, rest):
                self.assertFalse(all(passes(case) for case in relevant), "no case notices")

    def test_every_name_of_the_lists(self):
        self.shrunk(records, "STATIC_EXTENSIONS", "forced_browsing_count")
        self.shrunk(oracle, "PROBING_TYPES", "probing")
        self.shrunk(oracle, "FAILURE_STATUSES", "forced_browsing")
        self.shrunk(oracle, "WEIGH_NOTHING", "forced_browsing")

    def test_every_login_suffix_that_no_other_covers(self):
        """`/oauth/token` ends in `/token`, and so on: only a suffix that is not covered can be missed."""
        whole = records.LOGIN_SUFFIXES
        for suffix in whole:
            rest = [other for other in whole if other != suffix]
            if suffix.endswith(tuple(rest)):
                continue
            with self.subTest(without=suffix), mock.patch.object(records, "LOGIN_SUFFIXES", rest):
                self.assertFalse(all(passes(case) for case in ALL_CASES if case["file"] == "outcomes"), "no case notices")


class Words(unittest.TestCase):
    """Single words of the page."""

    def test_normalise(self):
        for sent, expected in (
            ("/a/b/..", "/a/"), ("/a/.", "/a/"), ("/..", "/"), ("/../../a", "/a"), ("", "/"), ("*", "*"),
            ("host:443", "host:443"), ("../../a", "a"), ("/%2e%2e/%2E/x", "/x"), ("/a%", "/a%"), ("/a%4", "/a%4"), ("//", "/"),
            ("/%252f", "/%2f"), ("/...", "/..."),
        ):  # fmt: skip
            self.assertEqual(records.normalise(sent), expected, sent)

    def test_split_target(self):
        for sent, expected in (
            ("http://h", ("", "")), ("http://h?x", ("", "x")), ("/a?b?c#d", ("/a", "b?c")), ("/a#b?c", ("/a", "")),
            ("//h/a", ("//h/a", "")), ("/a?u=http://x/y", ("/a", "u=http://x/y")),
        ):  # fmt: skip
            self.assertEqual(records.split_target(sent), expected, sent)

    def test_template(self):
        self.assertEqual(records.template_of("/a/12/b/34"), ("/a/{id}/b/{id}", "34"))
        self.assertEqual(records.template_of("/a/12b"), ("/a/12b", None))
        self.assertEqual(records.template_of("/a/٣"), ("/a/٣", None), "only ASCII digits")
        self.assertEqual(records.template_of("/a/0123456789abcde"), ("/a/0123456789abcde", None), "15 hex digits")

    def test_sources(self):
        self.assertEqual(records.source_of("2001:DB8:0:0:1::1"), "2001:db8::/64")
        self.assertEqual(records.network_of("2001:db8:1:2::/64"), "2001:db8:1::/48")
        self.assertEqual(records.network_of("10.1.2.3"), "10.1.2.0/24")

    def test_hashes(self):
        for value, expected in (
            (None, ""),
            (0, ""),
            ("", ""),
            (255, "00000000000000ff"),
            ("00000000000000FF", "00000000000000ff"),
        ):
            self.assertEqual(records.hash_text(value), expected)

    def test_unknown_settings_are_errors(self):
        with self.assertRaises(KeyError):
            oracle.Oracle({"detectors": {"brute_force": {"burst": 1}}})


class ClosedForms(unittest.TestCase):
    """The rules against formulas over the whole history, on random times."""

    def streams(self):
        source = random.Random(5)
        for _ in range(200):
            now, times = 0, []
            for _ in range(source.randrange(1, 60)):
                now += source.choice((0, 0, 1, 3, 10, 10, 30))
                times.append(now)
            yield times

    def test_leaky(self):
        """The level is the largest, over all j, of (events since the j-th) x leak - (time since the j-th)."""
        fired = 0
        for times in self.streams():
            rule = rules.Leaky(4, 10)
            for n, now in enumerate(times):
                first = rule.take(rules.Look(now), n)
                level = max((n - j + 1) * 10 - (now - times[j]) for j in range(n + 1))
                self.assertEqual(rule.level, level)
                self.assertEqual(first is not None, level > 40)
                fired += first is not None
        self.assertGreater(fired, 100)

    def test_window(self):
        fired = 0
        for times in self.streams():
            rule = rules.Window(6, 50)
            for n, now in enumerate(times):
                first = rule.take(rules.Look(now), n)
                inside = [j for j in range(n + 1) if now - 50 < times[j]]
                self.assertEqual(first, inside[0] if len(inside) >= 6 else None)
                fired += first is not None
        self.assertGreater(fired, 100)

    def test_distinct_window(self):
        """A value counts if none of its counted events is within the window."""
        source = random.Random(6)
        fired = 0
        for times in self.streams():
            rule, counted = rules.Window(4, 50, distinct=True), []
            for n, now in enumerate(times):
                value = source.randrange(8)
                first = rule.take(rules.Look(now, value), n)
                inside = [event for event in counted if event[0] > now - 50]
                new = all(value != other for _, other, _ in inside)
                if new:
                    counted.append((now, value, n))
                    inside.append((now, value, n))
                self.assertEqual(first, inside[0][2] if new and len(inside) >= 4 else None)
                fired += first is not None
        self.assertGreater(fired, 100)


class Attacks(unittest.TestCase):
    """Grouping of hits and the laws of sampling."""

    HOUR = 3_600_000_000

    def book(self, events):
        """A book of hits given as (time, fields)."""
        book = AttackBook()
        for number, (time_us, fields) in enumerate(events):
            hits = [records.Hit("sqli", fields.get("payload", "p"), fields.get("point", "q"))]
            source, path = fields.get("source", "10.0.0.1"), fields.get("path", "/a")
            flags = frozenset(fields.get("flags", ()))
            book.add_record(Record(time_us, source, "GET", path, status=403, request_id=f"r{number}", hits=hits, flags=flags))
        return book.results()

    def test_joins_within_the_hour(self):
        self.assertEqual(len(self.book([(0, {}), (self.HOUR, {})])), 1)
        self.assertEqual(len(self.book([(0, {}), (self.HOUR + 1, {})])), 2)

    def test_cut_at_a_day(self):
        hourly = [(hour * self.HOUR, {}) for hour in range(25)]
        self.assertEqual([attack["hits"] for attack in self.book(hourly)], [24, 1])

    def test_groups(self):
        differing = [{}, {"path": "/b"}, {"point": "z"}]
        joining = [{"source": "10.0.0.2"}, {"payload": "other"}, {"flags": ["blocked"]}]
        found = self.book([(0, fields) for fields in differing + joining])
        self.assertEqual([attack["hits"] for attack in found], [4, 1, 1])
        self.assertEqual((found[0]["blocked"], found[0]["distinct_sources"], found[0]["distinct_payloads"]), (1, 2, 2))

    def test_five_an_hour_are_kept(self):
        found = self.book([(k, {}) for k in range(7)] + [(self.HOUR, {})] * 6)[0]
        self.assertEqual((found["hits"], found["kept"], found["suppressed"]), (13, 10, 3))

    def test_laws_on_seeded_traffic(self):
        for seed in range(3):
            source = random.Random(seed)
            events = [
                (
                    source.randrange(30 * self.HOUR),
                    {"source": f"10.0.0.{source.randrange(4)}", "path": f"/{source.choice('abc')}"},
                )
                for _ in range(2000)
            ]
            events.sort(key=lambda event: event[0])
            found = self.book(events)
            self.assertEqual(sum(attack["hits"] for attack in found), 2000)
            for attack in found:
                self.assertEqual(attack["kept"] + attack["suppressed"], attack["hits"])
                self.assertGreaterEqual(attack["kept"], 1)
                self.assertLessEqual(len(attack["samples"]), 16)

    def test_standing_samples_do_not_depend_on_order(self):
        times = [0] * 100
        book, other = AttackBook(), AttackBook()
        numbered = [
            Record(t, "10.0.0.1", "GET", "/a", request_id=f"r{n}", hits=[records.Hit("xss")]) for n, t in enumerate(times)
        ]
        for record in numbered:
            book.add_record(record)
        for record in reversed(numbered):
            other.add_record(record)
        self.assertEqual(book.results()[0]["samples"], other.results()[0]["samples"])


class Generated(unittest.TestCase):
    """Seeded labelled traffic: what is labelled an attack is found, nobody else is."""

    def run_scenario(self, name, seed):
        lines, truth = generate.scenario(name, seed)
        subject = oracle.Oracle(None, TOOLS)
        for record in FileReader("jsonl", subject.config["ahead_us"]).records(map(json.dumps, lines)):
            subject.feed(record)
        return subject.results(), truth

    def test_labels(self):
        for name in generate.SCENARIOS:
            if name in ("spoofed100",):
                continue  # minutes of Python; `generate.py --scenario spoofed100` and oracle.py do it by hand
            with self.subTest(scenario=name):
                found, truth = self.run_scenario(name, 1)
                seen = {(alert["detector"], alert["key"]["value"]) for alert in found}
                for label in truth:
                    pair = (label["detector"], label["key"])
                    self.assertEqual(pair in seen, label["expected"], f"{label}")
                innocent = {label["key"] for label in truth if label["detector"] == "any"}
                accused = {pair for pair in seen if pair[1] in innocent}
                self.assertEqual(accused, set(), "alerts on innocent keys")

    def test_same_seed_same_traffic(self):
        self.assertEqual(generate.scenario("people", 7), generate.scenario("people", 7))
        self.assertNotEqual(generate.scenario("people", 7), generate.scenario("people", 8))


class Forgetting(unittest.TestCase):
    """What explains the alerts of a server that has no room for all."""

    def setUp(self):
        lines, _ = generate.scenario("thresholds", 1)
        self.lines = list(map(json.dumps, lines))
        self.explanation = forgetting.Explanation(self.lines, TOOLS)

    def run_forgetful(self, every):
        """The alerts of an oracle that forgets a key, any, at one record in so many, and how many it has forgotten."""
        source, subject, times = random.Random(every), oracle.Oracle(None, TOOLS), 0
        for record in FileReader("jsonl", subject.config["ahead_us"]).records(self.lines):
            if every and subject.keys and source.randrange(every) == 0:
                del subject.keys[source.choice(list(subject.keys))]
                times += 1
            subject.feed(record)
        return subject.results(), times

    def test_what_was_forgotten_is_explained_by_no_more_than_that(self):
        for every in (0, 20, 3, 1):
            with self.subTest(every=every):
                alerts, times = self.run_forgetful(every)
                found = self.explanation.of(alerts)
                self.assertEqual(found["unexplained"], [])
                self.assertLessEqual(found["forgotten"], times)
                self.assertEqual(found["differing"] > 10, every > 0)

    def test_what_was_made_up_is_not_explained(self):
        alerts, _ = self.run_forgetful(20)
        for name, changes in (
            ("one event more", {"count": alerts[5]["count"] + 1}),
            ("an earlier beginning", {"first": "2023-11-14T22:13:19.000000Z"}),
            ("a later end", {"fired": "2023-11-14T23:13:19.000000Z"}),
            ("another key", {"key": {"kind": "source", "value": "192.0.2.1"}}),
        ):
            with self.subTest(name):
                changed_one = {**alerts[5], **changes}
                self.assertNotEqual(self.explanation.of([*alerts[:5], changed_one, *alerts[6:]])["unexplained"], [])
        self.assertNotEqual(self.explanation.of([*alerts[:6], *alerts[5:]])["unexplained"], [], "twice")


class CommandLine(unittest.TestCase):
    """oracle.py as a program."""

    LINE = '10.0.0.1 - - [14/Nov/2023:22:13:{second:02d} +0000] "GET /f{second} HTTP/1.1" 404 1 "-" "-"\n'

    def run_oracle(self, *arguments):
        """(lines of output as objects, summary)"""
        program = Path(__file__).with_name("oracle.py")
        done = subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()], json.loads(done.stderr)

    def test_files_in_order_gzip_and_attacks(self):
        text = "".join(self.LINE.format(second=second) for second in range(4)).encode()
        half = len(text) // 2
        with tempfile.TemporaryDirectory() as folder:
            plain, packed = Path(folder, "a.log"), Path(folder, "b.log.gz")
            plain.write_bytes(text[:half])
            packed.write_bytes(gzip.compress(text[half:]))
            alerts, summary = self.run_oracle("--format", "combined", plain, packed)
            self.assertEqual([alert["detector"] for alert in alerts], ["forced_browsing"])
            self.assertEqual(alerts[0]["first"], "2023-11-14T22:13:00.000000Z")
            self.assertEqual((summary["lines"], summary["records"]), (4, 4))
            attacks, _ = self.run_oracle("--attacks", plain, packed)
            self.assertEqual([(attack["detector"], attack["hits"]) for attack in attacks], [("forced_browsing", 1)])

    def test_each_file_has_a_clock_of_its_own(self):
        early, late = self.LINE.format(second=0), self.LINE.format(second=1).replace("14/Nov/2023", "14/Nov/2024")
        with tempfile.TemporaryDirectory() as folder:
            one, other = Path(folder, "a"), Path(folder, "b")
            one.write_text(early + late, encoding="utf-8")
            other.write_text(late, encoding="utf-8")
            _, summary = self.run_oracle(one, other)
            self.assertEqual((summary["ahead"], summary["records"]), (1, 2))


class RealLogs(unittest.TestCase):
    """Real logs: each of its one behaviour, and one of ordinary visitors. Needs POSTANALYTICS_DATA."""

    EXPECTED = {
        "access-elastic-5000.log": [],
        "hub/http-wordpress-scan.log": ["forced_browsing"],
        "hub/http-bf-wordpress-bf.log": ["brute_force"],
        "hub/nginx-bad-user-agent.log": ["scanner"],
        "hub/http-dos-switching-ua.log": [],
    }

    def test_real_logs(self):
        folder = os.environ.get("POSTANALYTICS_DATA")
        if not folder:
            print("SKIPPED oracle on real logs: POSTANALYTICS_DATA is not set")
            self.skipTest("POSTANALYTICS_DATA is not set")
        for name, expected in self.EXPECTED.items():
            with self.subTest(log=name), records.open_log(Path(folder, name)) as lines:
                subject = oracle.Oracle(None, TOOLS)
                reader = FileReader("combined", subject.config["ahead_us"])
                for record in reader.records(lines):
                    subject.feed(record)
                self.assertEqual(reader.counts["unreadable"], 0)
                self.assertEqual([alert["detector"] for alert in subject.results()], expected)


if __name__ == "__main__":
    unittest.main()
