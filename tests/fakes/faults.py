"""What the far end can be told to do wrong, and for which calls."""

from dataclasses import dataclass, field, fields
from typing import Any

USAGES = (
    "missing", "null", "zero", "negative", "huge", "string", "twice", "first", "start_only", "cached_above_input",
)  # fmt: skip
HANGS = ("before_headers", "after_headers", "mid_stream")
CUTS = ("close", "reset", "end")
FRAMINGS = ("chunked", "length", "close")
NEWLINES = ("\n", "\r\n", "\r")
ENDS = ("completed", "incomplete", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """How one reply differs from a good one; every field may be combined with every other.

    A plain reply is one piece; a stream's pieces are its events.
    """

    # before a reply
    latency_ms: float = 0
    """Wait so long before the headers."""
    drop: str | None = None
    """Read the request, then leave without a byte: "close" or "reset"."""

    # another reply
    status: int | None = None
    """Answer with an error in the wire's own shape."""
    retry_after: str | None = None
    """Sent as it stands, however absurd."""
    headers: dict[str, str | list[str]] = field(default_factory=dict)
    """Added to the reply's headers; a list sends the same header several times."""
    trailers: dict[str, str] = field(default_factory=dict)
    """Sent after the last chunk of a chunked reply."""
    raw: str | None = None
    """The body in base64, of any bytes; a stream is one piece then."""
    body: str | None = None
    """The body, word for word, in place of a JSON reply or an event stream."""
    content_type: str | None = None

    # another text
    text: str | None = None
    """What the model says, cut into `output_tokens` or `chunks` pieces; may hold NUL and lone surrogates."""
    chunks: int | None = None
    """Into how many content events a stream cuts its text; otherwise one for each token."""
    finish_reason: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """Unknown fields, added to the reply and to every event that carries an object."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    knows_newer_limit: bool = True
    """Whether `max_completion_tokens` is listened to; servers other than OpenAI's may not know it."""
    usage: str | dict[str, Any] | None = None
    """One of USAGES, or an object that is sent word for word."""

    # another end of a response (`/v1/responses`)
    polls: int = 1
    """Of one in the background: how many times it is looked at before it has ended."""
    ends: str = "completed"
    """One of ENDS."""

    # another way of sending
    pace_ms: float = 0
    """Wait so long between two writes."""
    framing: str | None = None
    """How the reply says where it ends: one of FRAMINGS; "close" by closing the connection."""
    newline: str = "\n"
    """How lines of a stream end: one of NEWLINES."""
    bom: bool = False
    """A byte order mark before the first event."""
    before_each: str = ""
    """Written before each event: comments, `id:` and `retry:` lines."""
    split_bytes: int | None = None
    """Write so many bytes at a time, through the middle of characters and events."""
    hang: str | None = None
    """Go silent at one of HANGS."""
    hang_seconds: float | None = None
    """Go on after so long; None: when the client leaves."""
    after: int = 1
    """How many events go out before a hang "mid_stream"; of a plain body, half goes out."""
    error_after: int | None = None
    """Send an error event after so many events, and stop."""
    cut_after_bytes: int | None = None
    cut_after_chunks: int | None = None
    """Stop after so many body bytes or events …"""
    cut: str = "close"
    """… by one of CUTS; "end" ends the HTTP message well-formed, so that only its content is short."""
    done: int = 1
    """How often `[DONE]` or `message_stop` comes."""

    @classmethod
    def read(cls, given: dict[str, Any]) -> "Fault":
        """Read a fault as the control API takes it; raises ValueError for what it cannot mean."""
        unknown = given.keys() - {known.name for known in fields(cls)}
        if unknown:
            raise ValueError(f"unknown in a fault: {', '.join(sorted(unknown))}")
        fault = cls(**given)
        for name, value, known in (
            ("usage", fault.usage, USAGES),
            ("hang", fault.hang, HANGS),
            ("cut", fault.cut, CUTS),
            ("drop", fault.drop, ("close", "reset")),
            ("framing", fault.framing, FRAMINGS),
            ("newline", fault.newline, NEWLINES),
            ("ends", fault.ends, ENDS),
        ):
            if isinstance(value, str) and value not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}")
        return fault


@dataclass(kw_only=True)
class Rule:
    """A fault for the next `times` calls (None: for all) whose body holds `match`."""

    match: bytes
    fault: Fault
    given: dict[str, Any]
    times: int | None


class Script:
    """The rules in force, asked in the order in which they were added."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []

    def add(self, order: dict[str, Any]) -> None:
        """Add a rule as the control API takes it: match, fault, times."""
        unknown = order.keys() - {"match", "fault", "times"}
        if unknown:
            raise ValueError(f"unknown in a script: {', '.join(sorted(unknown))}")
        given = order.get("fault", {})
        match = order.get("match", "").encode()
        self.rules.append(Rule(match=match, fault=Fault.read(given), given=given, times=order.get("times")))

    def clear(self) -> None:
        self.rules.clear()

    def take(self, body: bytes) -> Rule | None:
        """Return the rule for this body, and count it as used."""
        for rule in self.rules:
            if rule.match in body:
                if rule.times is not None:
                    rule.times -= 1
                    if rule.times <= 0:
                        self.rules.remove(rule)
                return rule
        return None
