"""The rules that raise an alert, and the state of one key under one detector (READINGS.md R26-R36).

A rule is told of every event that its detector looks at (`take`), and answers with the position of the event that an alert
would begin with, or None. Positions count the events that the key has looked at. State is exact and unbounded; nothing here
knows what a request is.
"""

from collections import deque
from dataclasses import dataclass, field


@dataclass
class Look:
    """What a detector sees of an event. `time_us` is the raw time until the key's clock has made it the effective one."""

    time_us: int
    value: object = None  # what the row counts different ones of; None: it counts none, or this event has none
    counted: bool = True  # False: looked at, but raises no rule (a success, an attempt without user)
    empties: bool = False  # a known success: empties the rules that it may
    failed: bool = False  # for the share of failed attempts
    request_id: str = ""


class Leaky:
    """A level that each counted event raises by `leak_us` and each µs lowers by 1; fires above `events` times that."""

    def __init__(self, events, leak_us, distinct_last=None):
        self.fires_above = events * leak_us
        self.leak_us = leak_us
        self.distinct_last = distinct_last
        self.previous_us = None
        self.clear()

    def clear(self):
        self.level = 0
        self.first = None
        self.seen = deque(maxlen=self.distinct_last)

    def take(self, look, position):
        if self.previous_us is not None:
            self.level = max(0, self.level - (look.time_us - self.previous_us))
        self.previous_us = look.time_us
        if self.level == 0:
            self.clear()
        if not look.counted:
            return None
        if self.distinct_last is not None:
            if look.value in self.seen:
                return None
            self.seen.append(look.value)
        if self.first is None:
            self.first = position
        self.level += self.leak_us
        return self.first if self.level > self.fires_above else None

    def oldest(self):
        return self.first


class Window:
    """At least `events` counted events with effective time in (t - window, t]; `distinct`: a value counts once in a window."""

    def __init__(self, events, window_us, distinct=False, emptied_by_success=False):
        self.events = events
        self.window_us = window_us
        self.distinct = distinct
        self.emptied_by_success = emptied_by_success
        self.clear()

    def clear(self):
        self.counted = deque()  # (time, value, position)
        self.values = set()

    def take(self, look, position):
        while self.counted and self.counted[0][0] <= look.time_us - self.window_us:
            self.values.discard(self.counted.popleft()[1])
        if look.empties and self.emptied_by_success:
            self.clear()
        if not look.counted or (self.distinct and look.value in self.values):
            return None
        self.counted.append((look.time_us, look.value, position))
        self.values.add(look.value)
        return self.counted[0][2] if len(self.counted) >= self.events and self.holds() else None

    def holds(self):
        """What a rule asks for beyond the number of events."""
        return True

    def oldest(self):
        return self.counted[0][2] if self.counted else None


class ShareWindow(Window):
    """A distinct `Window` that fires only if enough of the last attempts within it failed (many people behind one address)."""

    def __init__(self, events, window_us, last_attempts, failed_percent):
        self.last_attempts = last_attempts
        self.failed_percent = failed_percent
        super().__init__(events, window_us, distinct=True)

    def clear(self):
        super().clear()
        self.attempts = deque(maxlen=self.last_attempts)  # (time, failed)

    def take(self, look, position):
        self.attempts.append((look.time_us, look.failed))
        while self.attempts and self.attempts[0][0] <= look.time_us - self.window_us:
            self.attempts.popleft()
        return super().take(look, position)

    def holds(self):
        failed = sum(1 for _, failed in self.attempts if failed)
        return 100 * failed >= self.failed_percent * len(self.attempts)


class NumericRange(Window):
    """The last `events` distinct values of the window are all numbers, and no two further apart than `spread`."""

    def __init__(self, events, window_us, spread):
        super().__init__(events, window_us, distinct=True)
        self.spread = spread

    def holds(self):
        last = [value for _, value, _ in self.counted][-self.events :]
        if not all(value.isascii() and value.isdigit() for value in last):
            return False
        numbers = [int(value) for value in last]
        return max(numbers) - min(numbers) <= self.spread


class SequentialTest:
    """Threshold random walk over distinct values: failures raise the score, successes lower it; restarts at the lower bound."""

    def __init__(self, failure, success, fires_at, reset_at, distinct_last, empty_after_us):
        self.failure = failure
        self.success = success
        self.fires_at = fires_at
        self.reset_at = reset_at
        self.empty_after_us = empty_after_us
        self.distinct_last = distinct_last
        self.previous_us = None
        self.clear()

    def clear(self):
        self.score = 0
        self.first = None
        self.seen = deque(maxlen=self.distinct_last)

    def take(self, look, position):
        if self.previous_us is not None and look.time_us - self.previous_us >= self.empty_after_us:
            self.clear()
        self.previous_us = look.time_us
        if look.value in self.seen:
            return None
        self.seen.append(look.value)
        if self.first is None:
            self.first = position
        self.score += self.failure if look.failed else -self.success
        if self.score <= self.reset_at:
            self.score, self.first = 0, None
        return self.first if self.score >= self.fires_at else None

    def oldest(self):
        return self.first


@dataclass
class Alert:
    """An alert in the making: final when its hold has ended."""

    first_us: int
    fired_us: int
    last_us: int
    count: int
    input_index: int
    values: set = field(default_factory=set)
    evidence: list = field(default_factory=list)


class KeyState:
    """One key under one detector: its clock, its rules, what it has looked at, and the alert that is on hold."""

    def __init__(self, rules, late_us, hold_us):
        self.rules = rules
        self.late_us = late_us
        self.hold_us = hold_us
        self.clock_us = None
        self.alert = None
        self.log = []  # looked at and possibly part of an alert to come; log[0] has position `base`
        self.base = 0

    def look(self, look, input_index):
        """Takes an event; returns (what became of it, alert or None): 'late', 'held', 'looked' or 'fired'."""
        if self.clock_us is not None:
            if look.time_us < self.clock_us - self.late_us:
                return "late", None
            look.time_us = max(look.time_us, self.clock_us)
        self.clock_us = look.time_us
        if self.alert and look.time_us < self.alert.fired_us + self.hold_us:
            self.hold(look)
            return "held", None
        self.alert = None
        self.log.append(look)
        position = self.base + len(self.log) - 1
        firsts = [first for first in [rule.take(look, position) for rule in self.rules] if first is not None]
        if firsts:
            return "fired", self.fire(firsts[0], input_index)
        self.trim(position)
        return "looked", None

    def hold(self, look):
        self.alert.last_us = look.time_us
        self.alert.count += 1
        if look.value is not None:
            self.alert.values.add(look.value)

    def fire(self, first, input_index):
        looks = self.log[first - self.base :]
        deciding = looks[-1]
        evidence = [look.request_id for look in looks[:15] if look.request_id]
        if len(looks) > 15 and deciding.request_id:
            evidence.append(deciding.request_id)
        self.alert = Alert(
            first_us=looks[0].time_us,
            fired_us=deciding.time_us,
            last_us=deciding.time_us,
            count=len(looks),
            input_index=input_index,
            values={look.value for look in looks if look.value is not None},
            evidence=list(dict.fromkeys(evidence)),
        )
        for rule in self.rules:
            rule.clear()
        self.base += len(self.log)
        self.log.clear()
        return self.alert

    def trim(self, position):
        """Forgets what no alert can begin with any more."""
        oldest = min((first for first in (rule.oldest() for rule in self.rules) if first is not None), default=position + 1)
        if oldest > position or oldest - self.base > 1000:
            del self.log[: oldest - self.base]
            self.base = oldest
