"""When a try may be repeated, and after how long."""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# The provider says itself that it did not process the request.
UNPROCESSED = frozenset({429, 503, 529})
LONGEST_SECONDS = 120.0


def delay(tries: int, retry_after: str | None, retry_after_ms: str | None = None) -> float:
    """Seconds to wait after `tries` failed ones: full jitter under 2**tries, never less than a sane Retry-After.

    Milliseconds, as the SDKs read them, go before seconds.

    Source of full jitter: aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter.
    """
    jittered = random.uniform(0, min(2.0**tries, 30.0))  # noqa: S311 - spreads load, hides nothing
    return jittered + (asked(retry_after_ms, per_second=1000) if retry_after_ms else asked(retry_after))


def asked(retry_after: str | None, *, per_second: int = 1) -> float:
    """The seconds a Retry-After header asks for, clamped to 0 to 120; 0 for what makes no sense."""
    try:
        seconds = float(retry_after or 0) / per_second
    except ValueError:
        seconds = _until(retry_after or "")
    return min(max(seconds, 0.0), LONGEST_SECONDS) if seconds == seconds else 0.0  # noqa: PLR0124 - NaN


def _until(date: str) -> float:
    """The seconds until an HTTP date; 0 for what is none."""
    try:
        return (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):  # also for one without a zone
        return 0.0
