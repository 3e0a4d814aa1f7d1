"""The way of one call as steps in time, from the moment it was admitted."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from usage.models import Attempt, Call


@dataclass(frozen=True, slots=True)
class Step:
    """`after` since admission; `took` until the next thing happened, where that is known."""

    at: datetime
    after: timedelta
    text: str
    took: timedelta | None = None
    tone: str = ""  # "", "wait" or "bad"


_OUTCOMES = {
    Attempt.Outcome.SENT: ("sent, the answer is awaited", "wait"),
    Attempt.Outcome.ANSWERED: ("answered", ""),
    Attempt.Outcome.REFUSED: ("refused", "bad"),
    Attempt.Outcome.BROKEN: ("the answer broke off", "bad"),
    Attempt.Outcome.CLOSED: ("closed, since its caller had gone", ""),
    Attempt.Outcome.UNSENT: ("never reached the provider", "bad"),
    Attempt.Outcome.UNKNOWN: ("sent, and nobody can say how it ended", "bad"),
}

_BEGINNINGS = {
    Call.Cached.NO: "Admitted and held",
    Call.Cached.EXACT: "Admitted: its answer was kept already",
    Call.Cached.NEAR: "Admitted: the answer of a question much alike was kept already",
    Call.Cached.COALESCED: "Got the answer of the same question in flight",
}

_ENDS = {
    Call.State.SETTLED: ("Settled", ""),
    Call.State.VOID: ("Void: the hold was released", "bad"),
    Call.State.UNKNOWN: ("Outcome unknown: the hold stays until it is known or the grace period ends", "wait"),
}


def timeline(call: Call, attempts: Iterable[Attempt]) -> list[Step]:
    """What is known of the call, in order."""
    steps = [_step(call, call.admitted_at, _BEGINNINGS[Call.Cached(call.cached)], call.claimed_at, "")]
    if call.claimed_at:
        steps.append(_step(call, call.claimed_at, "Claimed by a worker", None, ""))
    for attempt in attempts:
        said, tone = _OUTCOMES[Attempt.Outcome(attempt.outcome)]
        if attempt.backoff_ms:
            waited = timedelta(milliseconds=attempt.backoff_ms)
            steps.append(_step(call, attempt.started_at - waited, "Backed off", attempt.started_at, "wait"))
        status = f" {attempt.status}" if attempt.status else ""
        text = f"Attempt {attempt.n}, {attempt.provider}: {said}{status}"
        steps.append(_step(call, attempt.started_at, text, attempt.ended_at, tone))
    if call.first_byte_at:
        steps.append(_step(call, call.first_byte_at, "First byte", call.settled_at, ""))
    if call.settled_at:
        text, tone = _ENDS.get(Call.State(call.state), (call.state, ""))
        steps.append(_step(call, call.settled_at, text, None, tone))
    elif call.state == Call.State.HELD:
        steps.append(_step(call, call.start_by, "Void if no worker has started it by then", None, "wait"))
    return sorted(steps, key=lambda step: step.at)


def _step(call: Call, at: datetime, text: str, until: datetime | None, tone: str) -> Step:
    return Step(at, at - call.admitted_at, text, until - at if until else None, tone)
