"""How a caller's limits stand, in headers: as the IETF's draft has it, and as the SDKs of each wire know it.

Source: draft-ietf-httpapi-ratelimit-headers-11; developers.openai.com/api/docs/guides/rate-limits;
platform.claude.com/docs/en/api/rate-limits.
"""

import functools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from tenants.limits import REQUESTS, TOKENS, Left

_UNITS = {REQUESTS: ("rpm", "requests"), TOKENS: ("tpm", "tokens")}
_WINDOW_SECONDS = 60


def told(left: Sequence[Left], wire: str) -> dict[str, str]:
    """All rates in the draft's two fields, and the tightest of requests and of tokens in the wire's own; nothing where there is
    no limit.
    """
    if not left:
        return {}
    policy, names = _policy(tuple((one.scope, one.name, one.limit) for one in left))
    headers = {
        "ratelimit-policy": policy,
        "ratelimit": ", ".join(
            [
                f'"{name}";r={one.remaining};t={_whole(one.resets_in_seconds)}'
                for name, one in zip(names, left, strict=True)
            ]
        ),
    }
    for name, (_, unit) in _UNITS.items():
        of_unit = [one for one in left if one.name == name]
        if of_unit:
            headers |= _of_wire(min(of_unit, key=lambda one: one.remaining / one.limit), unit, wire)
    return headers


@functools.lru_cache(maxsize=4096)
def _policy(rates: tuple[tuple[str, str, int], ...]) -> tuple[str, tuple[str, ...]]:
    """What the rates of a call are, and under which names, each its own; the same for all calls under the same limits."""
    found: dict[str, int] = {}
    for scope, unit, limit in rates:
        name = f"{scope.replace('_', '-')}-{_UNITS[unit][0]}"
        while name in found:
            name += "+"
        found[name] = limit
    return ", ".join(f'"{name}";q={limit};w={_WINDOW_SECONDS}' for name, limit in found.items()), tuple(found)


def _of_wire(one: Left, unit: str, wire: str) -> dict[str, str]:
    if wire == "anthropic":
        resets_at = datetime.now(UTC) + timedelta(seconds=one.resets_in_seconds)
        figures = {"limit": one.limit, "remaining": one.remaining, "reset": f"{resets_at:%Y-%m-%dT%H:%M:%SZ}"}
        return {f"anthropic-ratelimit-{unit}-{what}": str(figure) for what, figure in figures.items()}
    figures = {"limit": one.limit, "remaining": one.remaining, "reset": span(one.resets_in_seconds)}
    return {f"x-ratelimit-{what}-{unit}": str(figure) for what, figure in figures.items()}


def span(seconds: float) -> str:
    """As OpenAI writes spans: 120ms, 1s, 6m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(_whole(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours}h' if hours else ''}{f'{minutes}m' if hours or minutes else ''}{rest}s"


def _whole(seconds: float) -> int:
    return -int(-seconds // 1)
