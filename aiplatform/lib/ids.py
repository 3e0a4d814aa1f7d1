"""Identifiers: UUIDv7, whose order is time, and the public form of a call's id."""

import secrets
import time
import uuid

CALL_PREFIX = "call_"


def uuid7() -> uuid.UUID:
    """A new UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = secrets.randbits(74)
    return uuid.UUID(int=milliseconds << 80 | 7 << 76 | (random >> 62) << 64 | 2 << 62 | random & (1 << 62) - 1)


def call_name(call_id: uuid.UUID) -> str:
    """The id as callers see it, e.g. `call_019ab0c2-7e11-7c3e-9a64-5e0d2f1b8c77`."""
    return f"{CALL_PREFIX}{call_id}"


def call_id(name: str) -> uuid.UUID:
    """The id behind `call_…` or a bare UUID; ValueError for anything else."""
    return uuid.UUID(name.removeprefix(CALL_PREFIX))
