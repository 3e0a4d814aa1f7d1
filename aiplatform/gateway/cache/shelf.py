"""Where answers are kept: Django's cache, be it Redis or Memcached. What it loses is made again."""

import struct
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from django.core.cache import caches

from aiplatform.lib.logs import log

BLIND_SECONDS = 1.0  # after a failure nothing is asked of it for so long
_FORM = 1
_SIZE = struct.Struct("!BI")
_blind_until = 0.0


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer as its call got it, in the caller's wire: one JSON body, or the events of a stream without our numbers."""

    call_id: uuid.UUID
    """The call that it was made for; its id tells when."""
    nano: int
    """What that call was charged."""
    key_id: uuid.UUID
    model: str
    """As it was asked for."""
    provider: str
    served_model: str
    endpoint: str
    content_type: str
    is_stream: bool
    body: bytes

    @property
    def made_at(self) -> float:
        """Unix time at which its call came in."""
        return (self.call_id.int >> 80) / 1000

    def packed(self) -> bytes:
        """As it is kept."""
        told = orjson.dumps([
            self.call_id.hex, self.nano, self.key_id.hex, self.model, self.provider, self.served_model, self.endpoint,
            self.content_type, self.is_stream,
        ])  # fmt: skip
        return _SIZE.pack(_FORM, len(told)) + told + self.body


def unpacked(kept: Any) -> Entry | None:
    """None for what another version has left, or anything else."""
    if not isinstance(kept, bytes) or len(kept) < _SIZE.size:
        return None
    form, size = _SIZE.unpack_from(kept)
    if form != _FORM:
        return None
    try:
        call_id, nano, key_id, *rest = orjson.loads(kept[_SIZE.size : _SIZE.size + size])
        model, provider, served_model, endpoint, content_type, is_stream = rest
        return Entry(
            uuid.UUID(call_id), nano, uuid.UUID(key_id), model, provider, served_model, endpoint, content_type, is_stream,
            kept[_SIZE.size + size :],
        )  # fmt: skip
    except (ValueError, TypeError):
        return None


def look(questions: Sequence[str]) -> dict[str, Entry]:
    """The answers that are kept, by their question, in one round trip; none while the cache cannot be reached."""
    return {name: entry for name, kept in get(questions).items() if (entry := unpacked(kept))}


def get(names: Sequence[str]) -> Mapping[str, Any]:
    """Whatever is kept under these names, in one round trip; nothing while the cache cannot be reached."""
    if time.monotonic() < _blind_until:
        return {}
    try:
        found: Mapping[str, Any] = caches["default"].get_many(names)
    except Exception as error:  # noqa: BLE001 - whatever backend was set up: each has errors of its own
        _failed("look", error)
        return {}
    return found


def keep(answers: Sequence[tuple[str, Entry, int]]) -> None:
    """Keeps (question, answer, seconds) each; what cannot be kept is not."""
    put([(name, entry.packed(), seconds) for name, entry, seconds in answers])


def put(values: Sequence[tuple[str, bytes, int]]) -> None:
    """Keeps (name, bytes, seconds) each; what cannot be kept is not."""
    if time.monotonic() < _blind_until:
        return
    by_ttl: dict[int, dict[str, bytes]] = defaultdict(dict)
    for name, value, seconds in values:
        by_ttl[seconds][name] = value
    try:
        for seconds, kept in by_ttl.items():
            caches["default"].set_many(kept, timeout=seconds)
    except Exception as error:  # noqa: BLE001 - as above
        _failed("keep", error)


def drop(questions: Sequence[str]) -> None:
    """Takes answers off; raises what the backend raises, since whoever asks wants to know."""
    caches["default"].delete_many(questions)


def _failed(what: str, error: Exception) -> None:
    global _blind_until  # noqa: PLW0603 - one a process is the point
    _blind_until = time.monotonic() + BLIND_SECONDS
    log.warning("cache.lost", what=what, error=type(error).__name__)
