"""What a provider's reply tells of the limits of a credential: how much is left, of how much, and when it is full again."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

WINDOW_SECONDS = 60.0  # of a limit whose reset is not told
LONGEST_RESET_SECONDS = 86_400.0
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_ANTHROPIC_TOKENS = ("tokens", "input-tokens", "output-tokens")


class Level(NamedTuple):
    """What a reply told: so many are left, of so many (None: not told), full again in so many seconds."""

    left: int
    limit: int | None
    full_in: float


class Told(NamedTuple):
    """Requests and tokens; None where nothing was told."""

    requests: Level | None
    tokens: Level | None


def read(headers: Mapping[str, str], now: datetime | None = None) -> Told | None:
    """What a reply's headers tell; None where they tell nothing that makes sense.

    Sources: developers.openai.com/api/docs/guides/rate-limits, platform.claude.com/docs/en/api/rate-limits, and Azure, which
    leaves the limit out or says -1, and often tells what remains but not when it resets.
    """
    if "anthropic-ratelimit-requests-remaining" in headers or "anthropic-ratelimit-tokens-remaining" in headers:
        moment = now or datetime.now(UTC)
        levels = [_anthropic(headers, what, moment) for what in _ANTHROPIC_TOKENS]
        known = [level for level in levels if level is not None]
        told = Told(_anthropic(headers, "requests", moment), min(known, key=lambda level: level.left, default=None))
    else:
        told = Told(_openai(headers, "requests"), _openai(headers, "tokens"))
    return told if told.requests or told.tokens else None


def _openai(headers: Mapping[str, str], what: str) -> Level | None:
    left = _count(headers.get(f"x-ratelimit-remaining-{what}"))
    if left is None:
        return None
    full_in = duration(headers.get(f"x-ratelimit-reset-{what}") or "")
    limit = _count(headers.get(f"x-ratelimit-limit-{what}"))
    return _level(left, limit, WINDOW_SECONDS if full_in is None else full_in)


def _anthropic(headers: Mapping[str, str], what: str, now: datetime) -> Level | None:
    prefix = f"anthropic-ratelimit-{what}"
    left = _count(headers.get(f"{prefix}-remaining"))
    if left is None:
        return None
    try:
        reset = datetime.fromisoformat(headers.get(f"{prefix}-reset") or "")
        full_in = ((reset if reset.tzinfo else reset.replace(tzinfo=UTC)) - now).total_seconds()
    except ValueError:
        full_in = WINDOW_SECONDS
    return _level(left, _count(headers.get(f"{prefix}-limit")), full_in)


def _level(left: int, limit: int | None, full_in: float) -> Level:
    return Level(left, limit if limit and limit >= left else None, min(max(full_in, 0.0), LONGEST_RESET_SECONDS))


def _count(text: str | None) -> int | None:
    """A count; None for what is missing, negative (Azure's -1 is "not known") or no number."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None  # noqa: PLR2004 - fits a double


def duration(text: str) -> float | None:
    """Seconds of `1s`, `6m0s`, `20ms`, `1h2m3.5s` or a bare number; None for anything else."""
    text = text.strip()
    found = _DURATION.fullmatch(text)
    if text and found:
        days, hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds + milliseconds / 1000
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
