"""Which buckets and places a call's limits are, and what it asks of each."""

import hashlib
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tenants.auth import Limit

REQUESTS, TOKENS, CONCURRENT = "requests_per_minute", "tokens_per_minute", "concurrent_calls"
EACH = "*"


class Rate(NamedTuple):
    """A bucket: `refill` a minute, `burst` at once, and what this call costs of it."""

    limit: Limit
    name: str
    key: str
    refill: int
    burst: int
    cost: int


class Place(NamedTuple):
    """A number of calls at once."""

    limit: Limit
    key: str
    most: int


@dataclass(slots=True)
class Ask:
    """One call's wish to pass its limits. `tokens` is the estimate that counts against tokens per minute, `subject` the end
    user, or the address of a caller who names none.
    """

    call_id: uuid.UUID
    tokens: int
    limits: tuple[Limit, ...]
    subject: str = ""

    def rates(self) -> list[Rate]:
        """In the order in which the script is told of them."""
        found = []
        for limit in applying(self.limits, self.subject):
            base = key(limit, self.subject)
            if limit.rpm:
                found.append(Rate(limit, REQUESTS, f"{base}:rpm", limit.rpm, limit.rpm_burst or limit.rpm, 1))
            if limit.tpm:
                burst = limit.tpm_burst or limit.tpm
                found.append(Rate(limit, TOKENS, f"{base}:tpm", limit.tpm, burst, self.tokens))
        return found

    def places(self) -> list[Place]:
        """The same of what is limited at once."""
        return [
            Place(limit, f"{key(limit, self.subject)}:slots", limit.concurrency)
            for limit in applying(self.limits, self.subject)
            if limit.concurrency
        ]


def applying(limits: Iterable[Limit], subject: str) -> list[Limit]:
    """Those that are for this end user, or for all."""
    return [limit for limit in limits if limit.end_user in {"", EACH, subject}]


def key(limit: Limit, subject: str) -> str:
    """Under which name Redis knows a limit; one of each end user has a name for each."""
    name = f"limit:{limit.scope_id}"
    if limit.end_user:
        digest = hashlib.blake2b(subject.encode(errors="replace"), digest_size=12).hexdigest()
        name += f":{'each' if limit.end_user == EACH else 'one'}:{digest}"
    return f"{name}:shadow" if limit.is_shadow else name
