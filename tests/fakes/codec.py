"""JSON in bytes, fast for what is usual, and still right for what the fast library refuses."""

import json
from typing import Any

import orjson


def loads(raw: bytes) -> Any:
    """Parse JSON, escapes of lone surrogates included; raises ValueError or RecursionError."""
    try:
        return orjson.loads(raw)
    except ValueError:
        return json.loads(raw)


def dumps(value: Any) -> bytes:
    """Encode in UTF-8, or in ASCII where a lone surrogate has no UTF-8 form."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":")).encode("ascii")
