#!/usr/bin/env python3
"""Reads and expands the hand-computed cases in cases/*.json.

    cases.py --export FOLDER     write each case as FILE-NUMBER.jsonl or .log, .expected.json and, if it has one, .config.json

The forms are few, so that other programs can expand them as well:

A case: `name`, `why` (how the expected values follow from the page), `detector` (only its alerts are compared), optional
`config` (as for oracle.py), `events` or `lines` (text of a combined log), `expected`.
An event is one of
  {"at": µs, fields...}                                              one record
  {"repeat": n, "every": µs, "at": µs, "from": k, fields...}         n records; the j-th (from 0) at `at` + j × `every`
  {"pattern": "FS...", "letters": {"F": {fields}}, "every", "at", "from", fields...}   one record a letter, whose fields are
      laid over
In strings of the last two, also within lists, `{i}` is `from` + j (`from` is 0 if absent), and `{i:N}` is that with N digits,
zero-filled. `event_us` is BASE_US + time, unless the event has a `time`. The user agents that count as attack tools are those
of tools.txt. Times in `expected` are µs after BASE_US; combined logs have their own times (BASE_US is 14/Nov/2023:22:13:20
+0000).
"""

import argparse
import json
import re
from pathlib import Path

BASE_US = 1_700_000_000_000_000
FOLDER = Path(__file__).with_name("cases")
FORM_FIELDS = {"at", "every", "repeat", "pattern", "letters", "from"}


def load():
    """All cases, each with the `file` that it is from."""
    for path in sorted(FOLDER.glob("*.json")):
        for case in json.loads(path.read_text(encoding="utf-8")):
            yield {"file": path.stem, **case}


def filled(value, index):
    """`value` with `{i}` and `{i:N}` replaced in every string."""
    if isinstance(value, str):
        return re.sub(r"\{i(?::(\d+))?\}", lambda match: f"{index:0{int(match[1] or 1)}d}", value)
    if isinstance(value, list):
        return [filled(item, index) for item in value]
    if isinstance(value, dict):
        return {name: filled(item, index) for name, item in value.items()}
    return value


def expanded(event):
    """The records of one entry of `events`."""
    fields = {name: value for name, value in event.items() if name not in FORM_FIELDS}
    if "pattern" in event:
        variants = [{**fields, **event["letters"][letter]} for letter in event["pattern"]]
    elif "repeat" in event:
        variants = [fields] * event["repeat"]
    else:
        return [with_time(fields, event["at"])]
    first = event.get("from", 0)
    return [with_time(filled(variant, first + j), event["at"] + j * event["every"]) for j, variant in enumerate(variants)]


def with_time(fields, at_us):
    return fields if "time" in fields else {"event_us": BASE_US + at_us, **fields}


def lines_of(case):
    """(format, lines) of a case, as a replay reads them."""
    if "lines" in case:
        return "combined", case["lines"]
    return "jsonl", [json.dumps(record) for event in case["events"] for record in expanded(event)]


def export(folder):
    """Writes every case as files that a replay can read; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {}
    for case in load():
        number = numbers[case["file"]] = numbers.get(case["file"], 0) + 1
        stem = f"{case['file']}-{number:02d}"
        line_format, lines = lines_of(case)
        name = f"{stem}.{'log' if line_format == 'combined' else 'jsonl'}"
        (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        about = {name: case[name] for name in ("name", "why", "detector", "expected")}
        (folder / f"{stem}.expected.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if "config" in case:
            (folder / f"{stem}.config.json").write_text(json.dumps(case["config"]) + "\n", encoding="utf-8")
    return sum(numbers.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--export", metavar="FOLDER", type=Path, required=True)
    print(f"{export(parser.parse_args().export)} cases")


if __name__ == "__main__":
    main()
