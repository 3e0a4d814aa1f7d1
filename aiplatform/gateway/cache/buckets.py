"""Buckets of questions that are equal but for how they are put: of each its vector and its name, kept beside the answers."""

import struct
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aiplatform.gateway.cache import shelf
from aiplatform.lib import embedding

MOST = 32
_FORM = b"\x01"
_MEMBER = struct.Struct(f"!20s16s{embedding.BYTES}s")


@dataclass(frozen=True, slots=True)
class Member:
    """One question of a bucket: its name, the call that answered it, its vector."""

    question: str
    call_id: uuid.UUID
    vector: bytes

    @property
    def made_at(self) -> float:
        """Unix time at which its call came in."""
        return (self.call_id.int >> 80) / 1000


def packed(members: Iterable[Member]) -> bytes:
    """As it is kept."""
    return _FORM + b"".join(_MEMBER.pack(bytes.fromhex(it.question), it.call_id.bytes, it.vector) for it in members)


def unpacked(kept: Any) -> list[Member]:
    """The members, the newest first; none for what another version has left, or anything else."""
    if not isinstance(kept, bytes) or kept[:1] != _FORM or (len(kept) - 1) % _MEMBER.size:
        return []
    return [
        Member(question.hex(), uuid.UUID(bytes=call), vector)
        for question, call, vector in _MEMBER.iter_unpack(kept[1:])
    ]


def add(added: Sequence[tuple[str, Member, int]], *, now: float) -> None:
    """Adds (bucket, member, seconds to live) each, in two round trips; what is older than that is dropped.

    It reads, changes and writes: what another process adds meanwhile may be lost, and is made again when it is asked again.
    """
    kept = shelf.get(list({bucket for bucket, _, _ in added}))
    buckets: dict[str, tuple[list[Member], int]] = {}
    for bucket, member, seconds in added:
        members, _ = buckets.get(bucket) or (unpacked(kept.get(bucket)), seconds)
        staying = [it for it in members if it.question != member.question and it.made_at > now - seconds]
        buckets[bucket] = [member, *staying][:MOST], seconds
    shelf.put([(bucket, packed(members), seconds) for bucket, (members, seconds) in buckets.items()])
