"""Refusals for want of money or of a limit's room, which explain themselves in the body and in headers."""

from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.urls import reverse
from starlette.requests import Request

from aiplatform.gateway import limit_headers, wires
from aiplatform.gateway.tickets import worst_nano
from aiplatform.gateway.wires import Wire
from aiplatform.lib import money
from aiplatform.lib.errors import ApiError
from tenants.limits import RateLimited
from usage.ledger import Hold

# Details of a cap's refusal that also go out as headers, as `x-budget-NAME`.
_BUDGET = (
    "scope",
    "period",
    "limit_usd",
    "spent_usd",
    "held_usd",
    "estimate_usd",
    "affordable_max_tokens",
    "resets_at",
)
_OF_WHOM = {"key": "this key", "environment": "this environment", "tenant": "your tenant", "end_user": "this end user"}
_OPENAI, _ANTHROPIC = "x-ratelimit-{what}-{unit}", "anthropic-ratelimit-{unit}-{what}"


class CapExceeded(ApiError):
    """A spending cap leaves no room for this call."""

    status = 402
    code = "cap_exceeded"


class CapContended(ApiError):
    """Calls in flight hold what is left of a spending cap; there may be room when they end."""

    status = 429
    code = "cap_contended"


def of_cap(hold: Hold, row: Any) -> ApiError:
    """What `usage_hold` refused, by its row; amounts in USD. A platform cap's own figures are the operator's alone."""
    contended = row.verdict == "cap_contended"
    kind: type[ApiError] = CapContended if contended else CapExceeded
    headers = {"retry-after": "1"} if contended else {"x-should-retry": "false"}
    estimate = money.usd(worst_nano(hold))
    if row.cap_scope == "platform":
        message = (
            "Calls in flight use up what the operator allows the whole platform; try again shortly."
            if contended
            else "The operator's limit for the whole platform leaves no room for this call; ask the operator."
        )
        return kind(message, headers=headers, scope="platform", estimate_usd=estimate)
    details: dict[str, Any] = {
        "scope": row.cap_scope,
        "period": row.cap_period,
        "cap": row.cap_id,
        "limit_usd": money.usd(row.limit_nano),
        "spent_usd": money.usd(row.spent_nano),
        "held_usd": money.usd(row.cap_held_nano),
        "estimate_usd": estimate,
        "affordable_max_tokens": row.affordable_tokens,
        "resets_at": row.resets_at and row.resets_at.astimezone(UTC).isoformat(),
        "resets_in_seconds": row.resets_at and max(int((row.resets_at - datetime.now(UTC)).total_seconds()), 1),
    }
    return kind(_message(details, contended=contended), headers=headers, **details)


def affordable_tokens(hold: Hold, room_nano: int) -> int:
    """The greatest output limit whose hold fits into so much room; at most what was wanted, 0 where not even the input fits."""
    spare = room_nano - hold.base_nano
    if spare < 0:
        return 0
    return hold.wanted_tokens if hold.output_pico == 0 else min(spare * 1000 // hold.output_pico, hold.wanted_tokens)


def explain(error: ApiError, wire: Wire, request: Request) -> None:
    """Adds the dashboard's address, and what else clients look for in headers, to a refusal that names its scope."""
    if error.status not in {402, 429} or "scope" not in error.details:
        return
    error.details["dashboard"] = dashboard(request)
    if "limit_name" in error.details:
        left = error.left if isinstance(error, RateLimited) else ()
        error.headers |= limit_headers.told(left, wire.name) | _limit_headers(error, wire)
    else:
        error.headers |= {
            f"x-budget-{name.replace('_', '-')}": str(error.details[name])
            for name in (*_BUDGET, "dashboard")
            if error.details.get(name) is not None
        }


def dashboard(request: Request) -> str:
    """Where a person sees the caps: under PUBLIC_URL, or where this request was sent."""
    root = settings.PUBLIC_URL or f"{request.url.scheme}://{request.url.netloc}"
    return root.rstrip("/") + reverse("usage:overview")


def _message(details: dict[str, Any], *, contended: bool) -> str:
    whose = "the prepaid balance" if details["scope"] == "credit" else (
        f"the {details['period']} spending cap of {_OF_WHOM.get(details['scope'], details['scope'])}"
    )  # fmt: skip
    figures = (
        f"limit {details['limit_usd']}, spent {details['spent_usd']}, held by calls in flight {details['held_usd']}, "
        f"this call at most {details['estimate_usd']} USD"
    )
    if contended:
        return f"Calls in flight hold what is left of {whose} ({figures}). Try again in a second, when some have ended."
    ways = []
    if details["affordable_max_tokens"]:
        ways.append(f"lower max_tokens to {details['affordable_max_tokens']}")
    if details["scope"] == "credit":
        ways.append("add credit")
    else:
        ways.append("ask an admin of your tenant to raise it")
        if details["resets_at"]:
            ways.append(f"wait until it resets at {details['resets_at']}")
    do = f"{', '.join(ways[:-1])}, or {ways[-1]}" if len(ways) > 1 else ways[0]
    return f"{whose[0].upper()}{whose[1:]} leaves no room for this call ({figures}): {do}."


def _limit_headers(error: ApiError, wire: Wire) -> dict[str, str]:
    """In the names that the wire's own SDK knows; concurrent calls have none, and get OpenAI's form."""
    found = error.details
    unit = {"requests_per_minute": "requests", "tokens_per_minute": "tokens"}.get(found["limit_name"], "concurrent")
    anthropic = wire is wires.ANTHROPIC and unit != "concurrent"
    form = _ANTHROPIC if anthropic else _OPENAI
    reset = found["resets_at"] if anthropic else f"{error.headers['retry-after']}s"
    figures = {"limit": found["limit"], "remaining": found["remaining"], "reset": reset}
    return {form.format(what=what, unit=unit): str(figure) for what, figure in figures.items()} | {
        "x-ratelimit-scope": found["scope"],
        "x-ratelimit-dashboard": found["dashboard"],
    }
