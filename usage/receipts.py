"""The receipt of a call: what it cost and why, to the nano-dollar, and its way from admission to settlement."""

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.utils import timezone

from aiplatform.lib import ids, money
from aiplatform.lib.errors import ApiError
from usage import credit, standings
from usage.models import Attempt, Call, LedgerEntry
from usage.pricing import INPUT_METERS, Rates, rates
from usage.standings import Standing

METERS = (*INPUT_METERS, "output")
_HALF = Decimal("0.5")


class CallNotFound(ApiError):
    """There is no such call here. A call's id looks like call_019ab0c2-7e11-7c3e-9a64-5e0d2f1b8c77."""

    status = 404
    code = "not_found"


def receipt(call_id: UUID | str, tenant: UUID | None = None, environment: UUID | None = None) -> dict[str, Any]:
    """Everything there is to say about one call, ready for JSON; of this tenant's or environment's only, if given.

    Money is USD in strings with nine decimals. `lines` are exact, with more decimals where a single token costs less
    than a nano-dollar, and add up to `charged_usd`. Raises CallNotFound.
    """
    call = _find(call_id, tenant, environment)
    price, attempts = _rates(call), list(Attempt.objects.filter(call_id=call.pk).order_by("n"))
    ended = call.state not in Call.LIVE
    return {
        "id": ids.call_name(call.pk),
        "state": call.state,
        "status": call.status,
        "error": call.error_code or None,
        "tenant": {"id": str(call.tenant_id), "name": call.tenant.name},
        "environment": {"id": str(call.environment_id), "name": call.environment.name},
        "key": {"id": str(call.api_key_id), "name": call.api_key.name, "prefix": call.api_key.prefix},
        "end_user": call.end_user or None,
        "wire": call.wire,
        "endpoint": call.endpoint,
        "streamed": call.streamed,
        "model": call.model,
        "served_model": call.served_model or None,
        "provider": call.provider,
        "request_id": call.request_id or None,
        "provider_request_id": call.provider_request_id or None,
        "max_output_tokens": call.max_output_tokens,
        "clamped": call.clamped,
        "admitted_at": call.admitted_at.isoformat(),
        "settled_at": call.settled_at.isoformat() if call.settled_at and ended else None,
        "tokens": {meter: getattr(call, f"{meter}_tokens") for meter in (*METERS, "reasoning")},
        "evidence": call.evidence or None,
        "price": _price(call, price),
        "lines": list(_lines(call, price)),
        "held_usd": money.usd(call.held_nano),
        "charged_usd": money.usd(call.charged_nano),
        "released_usd": money.usd(call.held_nano - call.charged_nano if ended else 0),
        "platform_loss_usd": money.usd(call.platform_loss_nano),
        "list_usd": money.usd(call.list_nano),
        "provider_cost_usd": money.usd(call.provider_cost_nano),
        "caps": [cap.as_json() for cap in _caps(call)],
        "credit": credit.of_call(call.pk),
        "attempts": [_attempt(attempt) for attempt in attempts],
        "timeline": _timeline(call, attempts),
        "ledger": [_entry(entry) for entry in LedgerEntry.objects.filter(ref=call.pk).order_by("number")],
    }


def summary(call: Call) -> dict[str, Any]:
    """One line of a list of calls; `call` comes with its environment and key."""
    return {
        "id": ids.call_name(call.pk),
        "state": call.state,
        "status": call.status,
        "error": call.error_code or None,
        "environment": call.environment.name,
        "key": call.api_key.prefix,
        "end_user": call.end_user or None,
        "wire": call.wire,
        "endpoint": call.endpoint,
        "model": call.model,
        "provider": call.provider,
        "streamed": call.streamed,
        "admitted_at": call.admitted_at.isoformat(),
        "tokens": {meter: getattr(call, f"{meter}_tokens") for meter in (*METERS, "reasoning")},
        "held_usd": money.usd(call.held_nano),
        "charged_usd": money.usd(call.charged_nano),
    }


def _find(call_id: UUID | str, tenant: UUID | None, environment: UUID | None) -> Call:
    try:
        pk = ids.call_id(call_id) if isinstance(call_id, str) else call_id
    except ValueError:
        raise CallNotFound from None
    calls = Call.objects.filter(pk=pk)
    if tenant is not None:
        calls = calls.filter(tenant_id=tenant)
    if environment is not None:
        calls = calls.filter(environment_id=environment)
    call = calls.select_related("tenant", "environment", "api_key", "price").first()
    if call is None:
        raise CallNotFound
    return call


def _rates(call: Call) -> Rates:
    price = call.price
    parts = price.components.values_list("meter", "usd", "per")
    rows = [(price.pk, price.provider, price.model, price.valid_from, price.valid_to, *part) for part in parts]
    return rates(rows)[0]


def _price(call: Call, price: Rates) -> dict[str, Any]:
    return {
        "id": call.price_id,
        "provider": price.provider,
        "model": price.model,
        "source": call.price.source,
        "valid_from": price.valid_from.isoformat(),
        "valid_to": price.valid_to and price.valid_to.isoformat(),
        "usd_per_million": {meter: _per_million(price, meter) for meter in METERS if meter in price.nano_per_token},
    }


def _lines(call: Call, price: Rates) -> Iterator[dict[str, Any]]:
    """Tokens times price for each class; then what was quantised away, and what lay above the hold, if anything did."""
    exact = Decimal(0)
    for meter in METERS:
        if count := getattr(call, f"{meter}_tokens"):
            amount = price.rate(meter) * count
            exact += amount
            yield {
                "item": meter,
                "tokens": count,
                "usd_per_million": _per_million(price, meter),
                "usd": _exact_usd(amount),
            }
    rounding = call.list_nano - exact
    if rounding:
        yield {"item": "rounding" if abs(rounding) <= _HALF else "difference", "usd": _exact_usd(rounding)}
    if call.platform_loss_nano:
        yield {"item": "above_hold", "usd": _exact_usd(Decimal(-call.platform_loss_nano))}


def _per_million(price: Rates, meter: str) -> str:
    """USD without exponent and without zeros at the end: `0.15`."""
    return f"{(price.rate(meter) * money.MILLION / money.NANO).normalize():f}"


def _exact_usd(nano: Decimal) -> str:
    """Exact USD with nine decimals, or as many as it takes."""
    usd = nano / money.NANO
    decimals = max(9, -int(usd.normalize().as_tuple().exponent))
    return f"{usd:.{decimals}f}"


def _caps(call: Call) -> list[Standing]:
    return standings.standings_of(call.bucket_ids, tenant_id=call.tenant_id, now=timezone.now())


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "n": attempt.n,
        "provider": attempt.provider,
        "outcome": attempt.outcome,
        "status": attempt.status,
        "error": attempt.error or None,
        "provider_request_id": attempt.provider_request_id or None,
        "started_at": attempt.started_at.isoformat(),
        "ended_at": attempt.ended_at and attempt.ended_at.isoformat(),
        "backoff_ms": attempt.backoff_ms,
    }


def _timeline(call: Call, attempts: list[Attempt]) -> list[dict[str, Any]]:
    """The steps that have happened, in order, with milliseconds since admission."""
    steps: list[tuple[str, datetime | None]] = [("admitted", call.admitted_at), ("claimed", call.claimed_at)]
    for attempt in attempts:
        name = f"attempt {attempt.n}"
        # The last one is closed by the settlement itself, an instant after the call.
        ended_at = attempt.ended_at and min(attempt.ended_at, call.settled_at or attempt.ended_at)
        steps += [(f"{name} started", attempt.started_at), (f"{name} {attempt.outcome}", ended_at)]
    steps += [("first byte", call.first_byte_at), (call.state, call.settled_at)]
    happened = sorted(((name, at) for name, at in steps if at), key=lambda step: step[1])
    return [
        {"step": name, "at": at.isoformat(), "ms": round((at - call.admitted_at).total_seconds() * 1000, 3)}
        for name, at in happened
    ]


def _entry(entry: LedgerEntry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "kind": entry.kind,
        "debit": entry.debit,
        "credit": entry.credit,
        "usd": money.usd(entry.amount_nano),
    }
