"""Hits into attacks, and which hits are kept as samples (READINGS.md R45-R48).

Exact and unbounded: every distinct source and payload is kept, so errors of top lists are 0. Behavioural alerts are grouped by
the same rules. The laws to check: kept + suppressed = hits; the first hit of every attack is kept; standing samples depend on
no order.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field

HOUR_US = 3_600_000_000
JOIN_US = HOUR_US
CUT_US = 24 * HOUR_US
KEPT_AN_HOUR = 5
STANDING_SAMPLES = 16
TOP_SOURCES = 16


def hash_of(*parts):
    """A hash of texts and numbers, for ids and for choosing samples."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


@dataclass
class Attack:
    """Hits of one group that follow each other closely enough."""

    group: tuple
    first_us: int
    last_us: int
    hits: int = 0
    blocked: int = 0
    kept: int = 0
    suppressed: int = 0
    statuses: Counter = field(default_factory=Counter)
    sources: Counter = field(default_factory=Counter)
    payloads: set = field(default_factory=set)
    identities: Counter = field(default_factory=Counter)  # (hour, identity) -> hits
    samples: list = field(default_factory=list)  # (hash, request id), the smallest
    kept_requests: list = field(default_factory=list)

    @property
    def id(self):
        return hash_of(*self.group, self.first_us)

    def add(self, time_us, identity, source, payload, status, blocked, request_id):
        self.last_us = time_us
        self.hits += 1
        self.blocked += blocked
        self.statuses[status] += 1
        self.sources[source] += 1
        self.payloads.add(payload)
        hour = (time_us - self.first_us) // HOUR_US
        self.identities[hour, identity] += 1
        if self.identities[hour, identity] <= KEPT_AN_HOUR:
            self.kept += 1
            self.kept_requests.append(request_id)
        else:
            self.suppressed += 1
        self.samples = sorted({*self.samples, (hash_of(self.id, request_id), request_id)})[:STANDING_SAMPLES]


class AttackBook:
    """All attacks of an input: the open one of each group, and those that ended."""

    def __init__(self):
        self.open = {}
        self.attacks = []
        self.index = 0

    def attack_of(self, group, time_us):
        """(the attack that an event of this group and time belongs to, its effective time)."""
        attack = self.open.get(group)
        if attack:
            time_us = max(time_us, attack.last_us)
            if time_us - attack.last_us <= JOIN_US and time_us - attack.first_us < CUT_US:
                return attack, time_us
        attack = Attack(group, time_us, time_us)
        self.open[group] = attack
        self.attacks.append(attack)
        return attack, time_us

    def add_record(self, record):
        self.index += 1
        blocked = "blocked" in record.flags
        for hit in record.hits:
            group = ("hits", hit.type, record.application, record.host, record.template, hit.point)
            attack, time_us = self.attack_of(group, record.time_us)
            identity = (hit.type, hit.point, record.endpoint, record.method, record.status, record.source)
            request_id = record.request_id or f"#{self.index}"
            attack.add(time_us, identity, record.source, hit.payload, record.status, blocked, request_id)

    def add_alert(self, detector, application, kind, value, host, endpoint, alert):
        """A behavioural alert is a hit of the attack (detector, scope, key)."""
        group = ("alerts", detector, application, host, endpoint or "", f"{kind} {value}")
        attack, time_us = self.attack_of(group, alert.fired_us)
        attack.add(time_us, group, value, "", 0, False, f"alert {alert.first_us}")

    def results(self):
        """Attacks as plain objects, in the order in which they began."""
        return [attack_object(attack) for attack in self.attacks]


def attack_object(attack):
    """The JSON object of an attack; times in µs since 1970."""
    kind, type_, application, host, place, last = attack.group
    names = {"hits": ("type", "template", "point"), "alerts": ("detector", "endpoint", "key")}[kind]
    return {
        "id": attack.id,
        names[0]: type_,
        "application": application,
        "host": host,
        names[1]: place,
        names[2]: last,
        "first_us": attack.first_us,
        "last_us": attack.last_us,
        "hits": attack.hits,
        "blocked": attack.blocked,
        "kept": attack.kept,
        "suppressed": attack.suppressed,
        "statuses": {str(status): count for status, count in sorted(attack.statuses.items())},
        "top_sources": [[source, count, 0] for source, count in attack.sources.most_common(TOP_SOURCES)],
        "distinct_sources": len(attack.sources),
        "distinct_payloads": len(attack.payloads),
        "samples": [request_id for _, request_id in attack.samples],
    }
