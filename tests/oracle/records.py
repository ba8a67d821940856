"""Lines of logs and JSON records become `Record`s; what the detector page calls words (source, path, template, ...) is here.

Independent of the server: written from the page of definitions and READINGS.md (R1-R16) alone. Pure functions; nothing here
keeps state but `FileReader`, which counts what it drops.
"""

import gzip
import ipaddress
import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MONTHS = {name: number for number, name in enumerate("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}

LOGIN_SUFFIXES = (
    "/login /login.php /signin /sign-in /auth /oauth/token /token /session /sessions /wp-login.php /xmlrpc.php "
    "/administrator/index.php /user/login /users/sign_in /account/login /admin/login"
).split()
STATIC_EXTENSIONS = frozenset(
    "jpg jpeg png gif svg webp avif ico bmp tif tiff woff woff2 ttf otf eot css js mjs map mp3 mp4 m4a m4v webm ogg "
    "ogv oga avi mov wav flac txt xml json html htm".split()
)
ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
FAILED, SUCCEEDED, UNKNOWN = "failed", "succeeded", "unknown"


@dataclass
class Hit:
    """One hit of a record: what the signature engine found, and where."""

    type: str
    payload: str = ""
    point: str = ""


@dataclass
class Record:
    """One request. `path` is normalised, `template` has its identifiers replaced."""

    time_us: int
    source: str
    method: str = ""
    path: str = "/"
    query: str = ""
    status: int = 0
    request_id: str = ""
    application: int = -1
    host: str = ""
    user_agent: str = ""
    session: str = ""
    user: str = ""
    outcome: str = UNKNOWN
    credentials: bool = False
    flags: frozenset = frozenset()
    hits: list = field(default_factory=list)
    template: str = ""
    object_id: str | None = None

    def __post_init__(self):
        self.template, self.object_id = template_of(self.path)

    @property
    def flagged(self):
        """Blocked, or from a listed source: no detector that reads a status may look (R12)."""
        return not self.flags.isdisjoint(("blocked", "denylist", "graylist"))

    @property
    def endpoint(self):
        """Identity of the endpoint: method, host, template."""
        return self.method, self.host, self.template

    @property
    def static(self):
        """True if the last segment has a static extension (R10)."""
        name = self.path.rsplit("/", 1)[-1]
        return "." in name and ascii_lower(name.rsplit(".", 1)[1]) in STATIC_EXTENSIONS


# --- words of the page ------------------------------------------------------------------------------------------------


def source_of(text):
    """The IPv4 address, the /64 of an IPv6 address, or the text itself (R1)."""
    try:
        if "%" in text:
            return text
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))


def network_of(source):
    """The /24 of an IPv4 source, the /48 of an IPv6 one, else the source itself."""
    try:
        if source.endswith("/64"):
            return str(ipaddress.ip_network(source).supernet(new_prefix=48))
        return str(ipaddress.ip_network((ipaddress.IPv4Address(source), 24), strict=False))
    except ValueError:
        return source


SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")


def split_target(target):
    """(path, query) of a request target as sent: scheme, authority and fragment dropped, nothing decoded yet."""
    authority = SCHEME.match(target)
    if authority:
        target = target[authority.end() :]
    path, _, query = target.partition("#")[0].partition("?")
    return path, query


def normalise(path):
    """Percent-decoded once, slashes collapsed, dots resolved; never empty (R5 c to f)."""
    data = path.encode("utf-8", "surrogateescape")
    data = PERCENT.sub(lambda match: bytes((int(match[1], 16),)), data)
    text = re.sub("/{2,}", "/", data.decode("utf-8", "surrogateescape"))
    return resolve_dots(text) or "/"


def resolve_dots(path):
    """Removes `.` and `..` segments; what climbs above the root is dropped; a trailing slash stays."""
    segments = path.split("/")
    rooted = segments[0] == "" and len(segments) > 1
    kept = []
    for segment in segments[1:] if rooted else segments:
        if segment == "..":
            if kept:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", "..") and kept:
        kept.append("")  # the directory itself: ends in a slash
    return ("/" if rooted else "") + "/".join(kept)


IDENTIFIER = re.compile(
    r"[0-9]+|[0-9A-Fa-f]{16,}|[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}", re.ASCII
)


def template_of(path):
    """(template, object id or None): whole segments that identify an object become `{id}` (R8)."""
    segments = path.split("/")
    object_id = None
    for place, segment in enumerate(segments):
        if segment and IDENTIFIER.fullmatch(segment):
            object_id = segment
            segments[place] = "{id}"
    return ("/".join(segments), object_id) if object_id is not None else (path, None)


def is_weightless(path, operators_list=()):
    """Paths that every browser asks for by itself, and what the operator lists (R11)."""
    if path in ("/favicon.ico", "/robots.txt", "/sitemap.xml") or path.startswith("/.well-known/"):
        return True
    if path.rsplit("/", 1)[-1].startswith("apple-touch-icon"):
        return True
    return any(path.startswith(entry) if entry.endswith("/") else path == entry for entry in operators_list)


def ascii_lower(text):
    """Lower case of ASCII letters only; all else stays."""
    return text.translate(ASCII_LOWER)


def is_login(record, operators_suffixes=()):
    """POST or PUT to a path with one of the suffixes of login forms."""
    if record.method not in ("POST", "PUT"):
        return False
    return ascii_lower(record.path).endswith((*LOGIN_SUFFIXES, *map(ascii_lower, operators_suffixes)))


# --- JSON lines -------------------------------------------------------------------------------------------------------


class Unreadable(ValueError):
    """A line that is no record."""


def time_us_of(text):
    """Microseconds since 1970 of an RFC 3339 time."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return (moment - EPOCH) // timedelta(microseconds=1)


def hash_text(value):
    """Sixteen lower-case digits of a session or user hash; other text stands for itself; empty if there is none (R2)."""
    if value is None or value == "" or value == 0:
        return ""
    if isinstance(value, int):
        return f"{value:016x}"
    if re.fullmatch("[0-9A-Fa-f]{16}", value):
        return "" if int(value, 16) == 0 else value.lower()
    return value


def record_of_json(text):
    """A `Record` from one JSON line."""
    try:
        fields = json.loads(text)
        time_us = fields["event_us"] if fields.get("event_us") is not None else time_us_of(fields["time"])
        method = fields.get("method") or ""
        path, query = fields.get("path") or "", ""
        if method:
            path, query = split_target(path)
            path = normalise(path)
        return Record(
            time_us=int(time_us),
            source=source_of(fields["ip"]),
            method=method,
            path=path,
            query=fields["query"] if fields.get("query") is not None else query,
            status=int(fields.get("status") or 0),
            request_id=str(fields.get("request_id") or ""),
            application=int(fields.get("application", -1)),
            host=fields.get("host") or "",
            user_agent=fields.get("user_agent") or "",
            session=hash_text(fields.get("session")),
            user=hash_text(fields.get("user")),
            outcome=fields.get("outcome") or UNKNOWN,
            credentials=bool(fields.get("basic_user")) or "credentials" in (fields.get("flags") or ()),
            flags=frozenset(fields.get("flags") or ()),
            hits=[Hit(hit["type"], hit.get("payload") or "", hit.get("point") or "") for hit in fields.get("hits") or ()],
        )
    except (KeyError, TypeError, ValueError, AttributeError, UnicodeError) as problem:
        raise Unreadable(str(problem)) from problem


# --- access logs ------------------------------------------------------------------------------------------------------

SYSLOG = re.compile(
    r"(?:<\d{1,3}>)?(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT\S+) \S+ \S+: ?"
    r"|<\d{1,3}>\d+ \S+ \S+ \S+ \S+ \S+ (?:-|\[.*?\]) "
)
QUOTED = r'"((?:[^"\\]|\\.)*)"'
COMBINED = re.compile(
    r"(?:(\S+) )?(\S+) (\S+) (\S+) \[(\d\d)/([A-Z][a-z]{2})/(\d{4}):(\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d)\] "
    + QUOTED
    + r" (\d{3}) \S+(?: "
    + QUOTED
    + " "
    + QUOTED
    + ")?"
)
REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (.+) HTTP/\d(?:\.\d)?", re.DOTALL)


def log_time_us(match):
    """Microseconds since 1970 of the time of a matched line, time zone applied."""
    day, month, year, hour, minute, second = match[5], match[6], match[7], match[8], match[9], match[10]
    if month not in MONTHS:
        raise Unreadable(f"month {month!r}")
    offset = timedelta(hours=int(match[12]), minutes=int(match[13]))
    try:
        # A leap second is the second after it.
        moment = datetime(int(year), MONTHS[month], int(day), int(hour), int(minute), tzinfo=timezone.utc)
    except ValueError as problem:
        raise Unreadable(str(problem)) from problem
    moment += timedelta(seconds=int(second)) + (offset if match[11] == "-" else -offset)
    return (moment - EPOCH) // timedelta(microseconds=1)


def without_port(host):
    """A virtual host without its port; an IPv6 host stands in brackets (R13)."""
    name, colon, port = host.rpartition(":")
    is_port = colon and re.fullmatch("[0-9]+", port) and int(port) < 65536
    return name if is_port and (name.endswith("]") or (name and ":" not in name)) else host


def record_of_log_line(line):
    """A `Record` from a line of an access log in NGINX/Apache combined format (R13)."""
    prefix = SYSLOG.match(line)
    match = COMBINED.match(line, prefix.end() if prefix else 0)
    if not match:
        raise Unreadable("not combined format")
    request = REQUEST_LINE.fullmatch(match[14])
    method, path, query = "", match[14], ""
    if request:
        method = request[1]
        path, query = split_target(request[2])
        path = normalise(path)
    user = "" if match[4] in ("-", '""') else match[4]
    return Record(
        time_us=log_time_us(match),
        source=source_of(match[2]),
        host=without_port(match[1] or ""),
        method=method,
        path=path,
        query=query,
        status=int(match[15]),
        user_agent=match[17] or "",
        user=user,
        credentials=bool(user),
    )


# --- files ------------------------------------------------------------------------------------------------------------


def open_log(path):
    """The bytes of a plain or gzip file, told apart by their first two bytes."""
    file = open(path, "rb")
    return gzip.open(file) if file.peek(2)[:2] == b"\x1f\x8b" else file


class FileReader:
    """Records of files in order; counts lines, unreadable ones, and ones too far ahead of their file's clock (R39)."""

    def __init__(self, line_format, ahead_us):
        self.parse = record_of_json if line_format == "jsonl" else record_of_log_line
        self.ahead_us = ahead_us
        self.counts = {"lines": 0, "unreadable": 0, "ahead": 0}

    def records(self, lines):
        """The records of one file, given as lines of bytes or text."""
        clock_us = None
        for line in lines:
            text = line.decode("utf-8", "surrogateescape") if isinstance(line, bytes) else line
            text = text.rstrip("\r\n")
            if not text:
                continue
            self.counts["lines"] += 1
            try:
                record = self.parse(text)
            except Unreadable:
                self.counts["unreadable"] += 1
                continue
            if clock_us is not None and record.time_us > clock_us + self.ahead_us:
                self.counts["ahead"] += 1
                continue
            clock_us = record.time_us if clock_us is None else max(clock_us, record.time_us)
            yield record
