"""Server-sent events read as the standard says, apart from our own reader: html.spec.whatwg.org, 9.2.6."""

import re
from typing import NamedTuple

_LINE_END = re.compile("\r\n|\n|\r")


class Event(NamedTuple):
    """One event; comments, ids and retry lines are no part of it."""

    name: str
    data: str


def events(stream: bytes) -> list[Event]:
    """Every event that a reader is given; what no blank line ends is none."""
    found: list[Event] = []
    name, data = "", list[str]()
    for line in _LINE_END.split(stream.decode().removeprefix("\ufeff"))[:-1]:
        if line == "":
            if data:
                found.append(Event(name, "\n".join(data)))
            name, data = "", []
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
    return found
