#!/usr/bin/env python3
"""Compares two files of alerts as sets of (detector, key, scope, first, fired, count), and says what only one of them has.

compare.py EXPECTED ACTUAL        exit status 0: equal, 1: not
"""

import json
import sys
from collections import Counter
from pathlib import Path


def identity(alert):
    """What must be equal of an alert, as text."""
    return json.dumps(
        [alert[name] for name in ("detector", "key", "application", "scope", "first", "fired", "count")], sort_keys=True
    )


def read(path):
    return Counter(identity(json.loads(line)) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip())


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    expected, actual = read(sys.argv[1]), read(sys.argv[2])
    for mark, rest in (("only in the first: ", expected - actual), ("only in the second:", actual - expected)):
        for text in sorted(rest.elements()):
            print(mark, text)
    print(f"{expected.total()} and {actual.total()} alerts, {(expected & actual).total()} equal")
    sys.exit(expected != actual)


if __name__ == "__main__":
    main()
