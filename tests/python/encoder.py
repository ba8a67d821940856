#!/usr/bin/env python3
"""A client of the postanalytics protocol, written from PROTOCOL.md alone, with the standard library only.

It is here to prove that the page is enough. It is a test program: one session, no resend, no denylist.

    encoder.py 127.0.0.1:3313 --records 1000     send records, wait for the acks, print a line of JSON
    encoder.py --print-golden [NAME]             print a golden frame in hex (batch-v1, batch-v1-empty, hello, stats-request)
    encoder.py --decode FILE                     print what a frame from the server says, as a line of JSON
"""

import argparse
import ipaddress
import json
import random
import socket
import struct
import sys
import time
import zlib
from dataclasses import dataclass, field

MASK64 = (1 << 64) - 1
MAGIC = b"PSTA"
HEADER_BYTES = 64
ANY_SHARD = 0xFFFFFFFF
HELLO, WELCOME, BATCH, ACK, VERDICTS, STATS_REQUEST, STATS, PING, PONG, GOODBYE, ERROR = 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13
STATS_FIELDS = (
    "process_cpu_us process_rss_bytes uptime_us session_records_stored session_records_duplicate session_records_rejected "
    "shard_records_received shard_records_stored shard_records_rejected shard_records_duplicate shard_records_live "
    "shard_records_evicted shard_timeframe_us shard_cpu_us"
).split()


class ProtocolError(Exception):
    """What the other side sent is no frame, or not one that may come now."""


# --- section 2: frames ------------------------------------------------------------------------------------------------


def frame(kind, body=b"", *, session, sequence=0, sent_us=0, schema=0, record_count=0):
    """A whole frame; the body is padded to a multiple of 16."""
    body += bytes(-len(body) % 16)
    fields = (kind, 1, schema, len(body), record_count, session, sequence, sent_us, zlib.crc32(body))
    head = MAGIC + struct.pack("<BBHIIQQQI", *fields)
    return head + struct.pack("<I", zlib.crc32(head)) + bytes(16) + body


@dataclass
class Frame:
    kind: int
    record_count: int
    session: int
    sequence: int
    sent_us: int
    body: bytes


def read_frame(read_exactly):
    """Reads one frame with `read_exactly(count)`, which returns that many bytes or raises."""
    head = read_exactly(HEADER_BYTES)
    if head[:4] != MAGIC:
        raise ProtocolError("bad magic")
    kind, version, _schema, body_bytes, record_count, session, sequence, sent_us, body_crc, header_crc = struct.unpack(
        "<BBHIIQQQII", head[4:48]
    )
    if zlib.crc32(head[:44]) != header_crc:
        raise ProtocolError("bad header CRC")
    if version != 1 or any(head[48:]) or body_bytes % 16 or body_bytes > 1 << 20:
        raise ProtocolError("bad header")
    body = read_exactly(body_bytes)
    if zlib.crc32(body) != body_crc:
        raise ProtocolError("bad body CRC")
    return Frame(kind, record_count, session, sequence, sent_us, body)


# --- section 4: control frames ----------------------------------------------------------------------------------------


def hello(*, session, node, name, wanted_shard=ANY_SHARD, replay=False, package=(0, 1, 0), sent_us=0):
    body = struct.pack("<4H3HH16sII32s", 1, 1, 1, 1, *package, 0, node, wanted_shard, int(replay), bytes(32))
    text = name.encode()[:255]
    body += struct.pack("<H22x", len(text)) + text
    return frame(HELLO, body, session=session, sent_us=sent_us)


def stats_request(*, session, token, sent_us=0):
    return frame(STATS_REQUEST, session=session, sequence=token, sent_us=sent_us)


def decode_welcome(body):
    keys = (
        "server_id deployment_id epoch shard_count shard routing_seed identity_key server_us window_bytes max_body_bytes "
        "protocol schema"
    )
    *package, server_id, deployment_id = struct.unpack_from("<3H2x16s16s", body)
    rest = struct.unpack_from("<QIIQ32sQQIHHI4x", body, 40)
    welcome = dict(zip(keys.split(), (server_id, deployment_id, *rest[:-1])), package=package)
    welcome["stored"] = [struct.unpack_from("<QI4xQ", body, 128 + 24 * index) for index in range(rest[-1])]
    return welcome


def decode_stats(body):
    return dict(zip(STATS_FIELDS, struct.unpack_from("<14Q", body)))


def decode_error(body):
    code, text_bytes, sequence = struct.unpack_from("<HH4xQ", body)
    return {"code": code, "sequence": sequence, "text": body[16 : 16 + text_bytes].decode(errors="replace")}


def decode_goodbye(body):
    return {"retry_after_ms": struct.unpack_from("<I", body)[0]}


def decode_verdicts(body):
    flags, count = struct.unpack_from("<II", body)
    verdicts = []
    for index in range(count):
        action, scope, every, application, address, session_hash, until_us, detector = struct.unpack_from(
            "<BBBxi16sQQH6x", body, 16 + 48 * index
        )
        subject = str(address_of(address)) if scope == 1 else f"{session_hash:#018x}"
        verdicts.append([action, subject, None if every else application, until_us, detector])
    return {"begin": bool(flags & 1), "end": bool(flags & 2), "verdicts": verdicts}


# --- section 6: routing -----------------------------------------------------------------------------------------------


def address_bytes(text):
    address = ipaddress.ip_address(text)
    return bytes(10) + b"\xff\xff" + address.packed if address.version == 4 else address.packed


def address_of(packed):
    address = ipaddress.IPv6Address(packed)
    return address.ipv4_mapped or address


def mix(x):
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & MASK64
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & MASK64
    return x ^ x >> 31


def shard_of(packed, seed, shard_count):
    high, low = struct.unpack(">QQ", packed)
    source = 0xFFFFFFFF00000000 | low & 0xFFFFFFFF if high == 0 and low >> 32 == 0xFFFF else high
    return mix((mix(source ^ seed) + seed) & MASK64) * shard_count >> 64


# --- sections 7 and 8: batches ----------------------------------------------------------------------------------------


@dataclass
class Record:
    request_id: bytes = bytes(16)
    client_ip: bytes = bytes(16)
    event_us: int = 0
    tenant: int = 0
    session_hash: int = 0
    user_hash: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    application: int = -1
    response_us: int = 0
    detection_us: int = 0
    flags: int = 0
    server_port: int = 0
    status: int = 0
    method: int = 0
    scheme: int = 0
    http_version: int = 0
    host: bytes = b""
    path: bytes = b""
    query: bytes = b""
    user_agent: bytes = b""
    referer: bytes = b""
    raw_headers: bytes = b""
    raw_body: bytes = b""
    hits: list = field(default_factory=list)  # (attack_type, severity, rule_id, point, payload)
    extensions: list = field(default_factory=list)  # (tag, value)


def put(blob, part):
    """Appends a part to the blob and returns its span."""
    span = struct.pack("<II", len(blob), len(part))
    blob += part
    return span


def put_hits(blob, hits):
    table = len(blob)
    blob += bytes(24 * len(hits))
    for index, (attack_type, severity, rule_id, point, payload) in enumerate(hits):
        entry = struct.pack("<HBxI", attack_type, severity, rule_id) + put(blob, point) + put(blob, payload)
        blob[table + 24 * index : table + 24 * index + 24] = entry
    return struct.pack("<II", table, len(hits))


def put_extensions(blob, extensions):
    table = len(blob)
    blob += bytes(12 * len(extensions))
    for index, (tag, value) in enumerate(extensions):
        blob[table + 12 * index : table + 12 * index + 12] = struct.pack("<Hxx", tag) + put(blob, value)
    return struct.pack("<II", table, len(extensions))


def batch(records, *, session, sequence, sent_us=0):
    fixed, blob = bytearray(), bytearray()
    for r in records:
        fixed += r.request_id + r.client_ip
        fixed += struct.pack("<6Q", r.event_us, r.tenant, r.session_hash, r.user_hash, r.request_bytes, r.response_bytes)
        fixed += struct.pack("<iIII", r.application, r.response_us, r.detection_us, r.flags)
        fixed += struct.pack("<HHBBBx", r.server_port, r.status, r.method, r.scheme, r.http_version)
        for part in (r.host, r.path, r.query, r.user_agent, r.referer, r.raw_headers, r.raw_body):
            fixed += put(blob, part)
        fixed += put_hits(blob, r.hits) + put_extensions(blob, r.extensions)
    body = bytes(fixed) + bytes(blob) + bytes(-len(blob) % 16)
    root = len(body)
    body += struct.pack("<iIiI", -root, len(records), len(fixed) - (root + 8), len(blob))
    return frame(BATCH, body, session=session, sequence=sequence, sent_us=sent_us, schema=1, record_count=len(records))


# --- section 13: golden frames ----------------------------------------------------------------------------------------


def golden(name):
    common = {"session": 0x1122334455667788, "sent_us": 1_700_000_000_000_000}
    if name == "hello":
        return hello(node=bytes(range(0xA0, 0xB0)), name="node-1", replay=True, package=(0, 1, 2), **common)
    if name == "stats-request":
        return stats_request(token=77, **common)
    if name == "batch-v1-empty":
        return batch([], sequence=43, **common)
    full = Record(
        request_id=bytes(range(16)),
        client_ip=address_bytes("192.0.2.1"),
        event_us=1_700_000_000_123_456,
        tenant=7,
        session_hash=0x0123456789ABCDEF,
        user_hash=0xFEDCBA9876543210,
        request_bytes=1234,
        response_bytes=56789,
        application=42,
        response_us=15000,
        detection_us=250,
        flags=77,
        server_port=8443,
        status=403,
        method=3,
        scheme=2,
        http_version=20,
        host=b"shop.example",
        path=b"/login",
        query=b"id=1%27--",
        user_agent=b"curl/8.5.0",
        referer=b"https://shop.example/",
        raw_headers=b"Host: shop.example\r\n\r\n",
        raw_body=b"user=a",
        hits=[(1, 200, 1001, b"get_id", b"1'--"), (15, 60, 0, b"", b"")],
        extensions=[(65535, b"new")],
    )
    ipv6 = Record(
        request_id=bytes(range(0xF0, 0x100)),
        client_ip=address_bytes("2001:db8:1:2:3:4:5:6"),
        event_us=1_700_000_000_123_457,
        status=200,
        scheme=1,
        http_version=11,
        path=b"/\xff",
        extensions=[(1, b"REPORT")],
    )
    return batch([full, ipv6, Record()], sequence=42, **common)


def hex_lines(data):
    return "\n".join(data[at : at + 16].hex(" ") for at in range(0, len(data), 16))


# --- section 3: a connection ------------------------------------------------------------------------------------------


class Lane:
    """The connection to one shard."""

    def __init__(self, address, session, node, wanted_shard, timeout):
        self.session = session
        self.socket = socket.create_connection(address, timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.socket.makefile("rb")
        self.socket.sendall(hello(session=session, node=node, name="encoder.py", wanted_shard=wanted_shard, sent_us=now_us()))
        self.welcome = decode_welcome(self.wait_for(WELCOME).body)
        stored = {(epoch, shard): sequence for epoch, shard, sequence in self.welcome["stored"]}
        self.acked = self.sent = stored.get((self.welcome["epoch"], self.welcome["shard"]), 0)
        self.records = {}
        self.unacked_bytes = {}

    def read_exactly(self, count):
        data = self.stream.read(count)
        if len(data) != count:
            raise ProtocolError("the server closed the connection")
        return data

    def wait_for(self, kind):
        """Reads on until a frame of this kind comes; answers and notes what comes before it."""
        while True:
            got = read_frame(self.read_exactly)
            if got.kind == ERROR:
                raise ProtocolError(f"the server answers with error {decode_error(got.body)}")
            if got.kind == PING:
                self.socket.sendall(frame(PONG, session=self.session, sequence=got.sequence, sent_us=now_us()))
            if got.kind == ACK:
                self.acked = max(self.acked, got.sequence)
            if got.kind == kind:
                return got
            if got.kind == GOODBYE:
                raise ProtocolError("the server shuts down")

    def send(self, records):
        data = batch(records, session=self.session, sequence=self.sent + 1, sent_us=now_us())
        if len(data) - HEADER_BYTES > self.welcome["max_body_bytes"]:
            raise ProtocolError("the batch is longer than the server takes")
        while self.in_flight() and self.in_flight() + len(data) > self.welcome["window_bytes"]:
            self.wait_for(ACK)
        self.sent += 1
        self.records[self.sent] = len(records)
        self.unacked_bytes[self.sent] = len(data)
        self.socket.sendall(data)

    def in_flight(self):
        return sum(size for sequence, size in self.unacked_bytes.items() if sequence > self.acked)

    def drain(self):
        """Waits until everything is acknowledged; returns the records acknowledged."""
        while self.acked < self.sent:
            self.wait_for(ACK)
        return sum(count for sequence, count in self.records.items() if sequence <= self.acked)

    def stats(self):
        self.socket.sendall(stats_request(session=self.session, token=7, sent_us=now_us()))
        got = self.wait_for(STATS)
        if got.sequence != 7:
            raise ProtocolError("the Stats frame has another token")
        return decode_stats(got.body)

    def close(self):
        self.socket.sendall(frame(GOODBYE, bytes(16), session=self.session, sent_us=now_us()))
        self.socket.close()


def now_us():
    return time.time_ns() // 1000


def made_up_record(random_source):
    if random_source.random() < 0.2:
        address = address_bytes(f"2001:db8:{random_source.randrange(1 << 16):x}::1")
    else:
        address = address_bytes(f"10.{random_source.randrange(256)}.{random_source.randrange(256)}.7")
    attack = random_source.random() < 0.05
    return Record(
        request_id=random_source.randbytes(16),
        client_ip=address,
        event_us=now_us(),
        request_bytes=400,
        response_bytes=1200,
        response_us=900,
        status=403 if attack else 200,
        flags=1 if attack else 0,
        server_port=443,
        method=1,
        scheme=2,
        http_version=11,
        host=b"shop.example",
        path=b"/item/%d" % random_source.randrange(1000),
        query=b"page=1",
        user_agent=b"encoder.py",
        hits=[(1, 200, 1, b"get_page", b"1' or 1=1")] if attack else [],
        extensions=[(65535, b"unknown to all")] if attack else [],
    )


def run(address, count, batch_records, timeout):
    random_source = random.Random()
    session = random_source.randrange(1, 1 << 64)
    node = random_source.randbytes(16)
    first = Lane(address, session, node, ANY_SHARD, timeout)
    lanes = {first.welcome["shard"]: first}
    seed, shard_count = first.welcome["routing_seed"], first.welcome["shard_count"]
    waiting = {}
    for _ in range(count):
        record = made_up_record(random_source)
        waiting.setdefault(shard_of(record.client_ip, seed, shard_count), []).append(record)
    for shard, records in waiting.items():
        if shard not in lanes:
            lanes[shard] = Lane(address, session, node, shard, timeout)
        for at in range(0, len(records), batch_records):
            lanes[shard].send(records[at : at + batch_records])
        lanes[shard].send([])  # an empty batch moves the sequence on and nothing else
    acked = sum(lane.drain() for lane in lanes.values())
    stored = sum(lane.stats()["session_records_stored"] for lane in lanes.values())
    for lane in lanes.values():
        lane.close()
    return {"sent": count, "acked": acked, "stored": stored}


def decode_file(path):
    with open(path, encoding="ascii") as file:
        data = bytes.fromhex(file.read())
    at = 0

    def read_exactly(count):
        nonlocal at
        piece = data[at : at + count]
        at += count
        if len(piece) != count:
            raise ProtocolError("the file ends within the frame")
        return piece

    got = read_frame(read_exactly)
    decoders = {WELCOME: decode_welcome, STATS: decode_stats, ERROR: decode_error, GOODBYE: decode_goodbye}
    decoders[VERDICTS] = decode_verdicts
    decoded = decoders.get(got.kind, lambda body: {})(got.body)
    return {"kind": got.kind, "session": got.session, "sequence": got.sequence, **decoded}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", nargs="?", help="host:port")
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16, help="records of a batch")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds to wait for anything")
    frames = ["batch-v1", "batch-v1-empty", "hello", "stats-request"]
    parser.add_argument("--print-golden", nargs="?", const="batch-v1", choices=frames)
    parser.add_argument("--decode", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.print_golden:
        print(hex_lines(golden(arguments.print_golden)))
    elif arguments.decode:
        print(json.dumps(decode_file(arguments.decode), default=bytes.hex))
    elif arguments.server:
        host, _, port = arguments.server.rpartition(":")
        result = run((host.strip("[]"), int(port)), arguments.records, arguments.batch, arguments.timeout)
        print(json.dumps(result))
        return 0 if result["sent"] == result["acked"] == result["stored"] else 1
    else:
        parser.error("give host:port, --print-golden or --decode")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ProtocolError) as error:
        sys.exit(f"encoder.py: {error}")
