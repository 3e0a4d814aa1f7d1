"""What rows of calls need beyond their fields."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from django import template

from usage.models import Attempt, Call, PriceComponent

register = template.Library()


@register.filter
def of(counts: Mapping[Any, int], key: Any) -> int:
    return counts.get(key, 0)


@register.filter
def tokens_in(call: Call) -> int:
    return call.input_tokens + call.cache_read_tokens + call.cache_write_5m_tokens + call.cache_write_1h_tokens


@register.filter
def first_byte(call: Call) -> timedelta | None:
    """From admission to the first byte of the answer."""
    return call.first_byte_at - call.admitted_at if call.first_byte_at else None


@register.filter
def is_live(call: Call) -> bool:
    return call.state in Call.LIVE


@register.filter
def total(call: Call) -> timedelta | None:
    return call.settled_at - call.admitted_at if call.settled_at else None


@register.filter
def released(call: Call) -> int:
    return call.held_nano - call.charged_nano


@register.filter
def state_words(state: str) -> str:
    return {Call.State.INFLIGHT: "in flight"}.get(Call.State(state), state)


@register.filter
def took(attempt: Attempt) -> timedelta | None:
    return attempt.ended_at - attempt.started_at if attempt.ended_at else None


@register.filter
def backoff(attempt: Attempt) -> timedelta:
    return timedelta(milliseconds=attempt.backoff_ms)


@register.filter
def item_words(item: str) -> str:
    """A receipt's line by name."""
    words = dict(PriceComponent.Meter.choices) | {
        "rounding": "Rounded once, half to even",
        "difference": "Unexplained difference",
        "above_hold": "Above the hold, borne by the house",
    }
    return str(words.get(item, item))
