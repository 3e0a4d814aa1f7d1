"""Input, before it is sent: does the environment's policy let it pass?"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiplatform.lib import postgres
from aiplatform.lib.errors import ApiError
from aiplatform.lib.ids import uuid7
from moderation.rules import Terms, texts

RELOAD_SECONDS = 1.0


class ContentBlocked(ApiError):
    """The environment's content policy does not allow this input; nothing was sent and nothing was charged."""

    status = 400
    code = "content_blocked"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why an input is blocked."""

    policy_version: int
    term: str


class Screen:
    """One process's copy of all policies, at most a second old."""

    def __init__(self) -> None:
        self._policies: dict[uuid.UUID, tuple[int, Terms]] = {}
        self._read_at = -RELOAD_SECONDS

    def refresh(self) -> None:
        """Reads the policies again where the copy is too old; raises Unavailable, and then nothing may pass unscreened."""
        if time.monotonic() - self._read_at < RELOAD_SECONDS:
            return
        began = time.monotonic()
        rows = postgres.run(
            "SELECT environment_id, version, blocked_terms FROM moderation_policy WHERE cardinality(blocked_terms) > 0"
        )
        policies = {}
        for row in rows:
            kept = self._policies.get(row.environment_id)
            current = kept if kept and kept[0] == row.version else (row.version, Terms(row.blocked_terms))
            policies[row.environment_id] = current
        self._policies = policies  # at once: the event loop is reading meanwhile
        self._read_at = began

    def version(self, environment_id: uuid.UUID) -> int:
        """Of the policy by which this environment's input is screened now; 0 where nothing is."""
        policy = self._policies.get(environment_id)
        return policy[0] if policy else 0

    def verdict(self, environment_id: uuid.UUID, body: Callable[[], Any]) -> Verdict | None:
        """None where the input may pass; `body` parses it, and is called only where there is a policy."""
        policy = self._policies.get(environment_id)
        if policy is None:
            return None
        version, terms = policy
        for text in texts(body()):
            if term := terms.first_in(text):
                return Verdict(version, term)
        return None


def record(*, tenant_id: uuid.UUID, environment_id: uuid.UUID, call_id: uuid.UUID, verdict: Verdict) -> None:
    """Puts a blocked call on record, once."""
    postgres.run(
        """INSERT INTO moderation_finding (id, tenant_id, environment_id, call_id, policy_version, term, created_at)
           VALUES (%s, %s, %s, %s, %s, %s, now()) ON CONFLICT (call_id) DO NOTHING""",
        [uuid7(), tenant_id, environment_id, call_id, verdict.policy_version, verdict.term],
    )
