#!/usr/bin/env python3
"""Whether alerts are those of an oracle that now and then forgets a key, and how often it must have done so.

    forgetting.py [--tools FILE] RECORDS.jsonl ALERTS.jsonl...     exit status 0: they are, 1: not

A server has room for so many keys and for so much of what it keeps of each; where that is used up, some key yields. It is then
forgotten whole: clock, rules, the alert that is on hold. So each alert of a bounded server must be the oracle's over some stretch
of its key's events, whatever key yields and when; an alert that no stretch explains was made up, and one that is missing costs
at least one key that was forgotten. Writes one JSON object for each file of alerts: how many keys there are, how many have other
alerts than the oracle that forgets nothing, `forgotten`, the least number of keys that yielded, which the server must have
counted, and what nothing explains. It knows the default numbers alone.
"""

import argparse
import dataclasses
import gc
import json
import sys
from collections import defaultdict
from pathlib import Path

from oracle import DEFAULTS, RULES, Eyes, alert_place, read_tools, readable, scope_of
from records import FileReader, open_log, time_us_of
from rules import KeyState


def forgotten(looks, alerts, fresh):
    """How often a key must have been forgotten at least, so that these events give these alerts; None if that cannot be.

    `alerts` are (first, fired, count) in order; `fresh` makes the state of a key of which nothing is known. Searched by the
    number of times: what a start, which is an event and the alerts that were raised before it, leads to.
    """
    starts, seen, times = {(0, 0)}, set(), 0
    while starts:
        following = set()
        for start in starts:
            stops, is_whole = ways_from(start, looks, alerts, fresh())
            if is_whole:
                return times
            following |= stops
        seen |= starts
        starts, times = following - seen, times + 1
    return None


def ways_from(start, looks, alerts, state):
    """Where a key of which nothing is known at `start` may be forgotten next, and whether it need not be."""
    at, told = start
    stops, last = set(), None
    for position in range(at, len(looks)):
        is_right = last is None or last.count == alerts[told - 1][2]
        if position > at and is_right:
            stops.add((position, told))
        _, alert = state.look(dataclasses.replace(looks[position]), position)
        if alert:
            if not is_right or told == len(alerts) or (alert.first_us, alert.fired_us) != alerts[told][:2]:
                return stops, False
            last, told = alert, told + 1
        if last is not None and last.count > alerts[told - 1][2]:
            return stops, False
    return stops, told == len(alerts) and (last is None or last.count == alerts[told - 1][2])


def fresh_state(detector):
    """The state of a key of which nothing is known."""
    numbers = DEFAULTS["detectors"][detector]
    return KeyState(RULES[detector](numbers), DEFAULTS["late_us"], numbers["hold_us"])


def remembered(looks, state):
    """The alerts of a key that is never forgotten."""
    told = (state.look(dataclasses.replace(look), position) for position, look in enumerate(looks))
    alerts = [alert for _, alert in told if alert]
    return [(alert.first_us, alert.fired_us, alert.count) for alert in alerts]


class Explanation:
    """All keys and what each looks at, in order: made once, asked about the alerts of as many runs as one likes."""

    def __init__(self, lines, tools):
        eyes, reader, self.keys = Eyes(DEFAULTS, tools), FileReader("jsonl", DEFAULTS["ahead_us"]), {}
        for record in reader.records(lines):
            for detector, kind, value, host, endpoint, look in eyes.looks(record):
                self.keys.setdefault((detector, record.application, kind, value, host, endpoint), []).append(look)
        exact = {key: remembered(looks, fresh_state(key[0])) for key, looks in self.keys.items()}
        self.exact = {key: alerts for key, alerts in exact.items() if alerts}
        self.places = {place_of(*key): key for key in self.keys}

    def of(self, alerts):
        """`alerts`: objects of the page in order. Returns the object that is printed."""
        told, unexplained = defaultdict(list), []
        for alert in alerts:
            key = self.places.get(alert_place(alert))
            times = [time_us_of(alert["first"]), time_us_of(alert["fired"])]
            if key is None:
                unexplained.append({"place": alert_place(alert), "why": "no such key", "alerts": [*times, alert["count"]]})
            else:
                told[key].append((*times, alert["count"]))
        differing = [key for key in {**self.exact, **told} if self.exact.get(key, []) != told[key]]
        total = 0
        for key in differing:
            times = forgotten(self.keys[key], told[key], lambda key=key: fresh_state(key[0]))
            if times is None:
                unexplained.append({"place": place_of(*key), "alerts": told[key], "exact": self.exact.get(key, [])})
            total += times or 0
        return {"keys": len(self.keys), "differing": len(differing), "forgotten": total, "unexplained": unexplained}


def place_of(detector, application, kind, value, host, endpoint):
    """A key as `alert_place` names it."""
    key = {"kind": kind, "value": readable(value)}
    return alert_place({"detector": detector, "application": application, "key": key, "scope": scope_of(host, endpoint)})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tools", help="names of attack tools, one a line", default=Path(__file__).with_name("tools.txt"))
    parser.add_argument("records")
    parser.add_argument("alerts", nargs="+")
    arguments = parser.parse_args()
    gc.disable()  # as in oracle.py
    with open_log(arguments.records) as lines:
        explanation = Explanation(lines, read_tools(arguments.tools))
    found = []
    for path in arguments.alerts:
        found.append(explanation.of(map(json.loads, Path(path).read_text(encoding="utf-8").splitlines())))
        print(json.dumps(found[-1]))
    unexplained = [what for one in found for what in one["unexplained"]]
    sys.exit(f"not explained: {unexplained[:5]}" if unexplained else 0)


if __name__ == "__main__":
    main()
