"""The receipt of a call: what it cost and why, to the nano-dollar, and its way from admission to settlement."""

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.utils import timezone

from aiplatform.lib import ids, money
from aiplatform.lib.errors import ApiError
from aiplatform.providers.base import Usage
from usage import credit, standings, tariffs
from usage.models import Attempt, Call, CallPayload, LedgerEntry
from usage.pricing import METERS as ALL_METERS
from usage.pricing import STANDARD, TOKEN_METERS, Rates, rates
from usage.pricing import TEXT_METERS as METERS
from usage.standings import Standing

# How a line tells its units and its rate, by how many units that is for.
_UNITS = {1000: ("calls", "usd_per_thousand"), 1: ("units", "usd_each")}
_ORDER = {meter: at for at, meter in enumerate(ALL_METERS)}


class CallNotFound(ApiError):
    """There is no such call here. A call's id looks like call_019ab0c2-7e11-7c3e-9a64-5e0d2f1b8c77."""

    status = 404
    code = "not_found"


def receipt(call_id: UUID | str, tenant: UUID | None = None, environment: UUID | None = None) -> dict[str, Any]:
    """Everything there is to say about one call, ready for JSON; of this tenant's or environment's only, if given.

    Money is USD in strings with nine decimals. `lines` are exact, with more decimals where a single token costs less
    than a nano-dollar, and add up to `charged_usd`; with `corrections` that is `to_pay_usd`. Raises CallNotFound.
    """
    call = _find(call_id, tenant, environment)
    price, attempts = _rates(call), list(Attempt.objects.filter(call_id=call.pk).order_by("n"))
    entries = list(LedgerEntry.objects.filter(ref=call.pk).order_by("number"))
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
        "corrections": _corrections(entries),
        "to_pay_usd": money.usd(call.charged_nano + call.corrected_nano),
        "released_usd": money.usd(call.held_nano - call.charged_nano if ended else 0),
        "platform_loss_usd": money.usd(call.platform_loss_nano),
        "list_usd": money.usd(call.list_nano),
        "cache_saving_usd": money.usd(cache_saving_nano(call, price)),
        "prompt_cache": _told_of_cache(call),
        "given_again": given_again(call),
        "provider_cost_usd": money.usd(call.provider_cost_nano),
        "caps": [cap.as_json() for cap in _caps(call)],
        "credit": credit.of_call(call.pk),
        "left_out": _left_out(call),
        "attempts": [_attempt(call, attempt) for attempt in attempts],
        "timeline": _timeline(call, attempts),
        "ledger": [_entry(entry) for entry in entries],
    }


def given_again(call: Call) -> dict[str, Any] | None:
    """Whose answer the call got, how old that was, and what it saved; None where the answer was made for it."""
    if not call.cached:
        return None
    return {
        "how": call.cached,
        "source": call.cached_from and ids.call_name(call.cached_from),
        "age_seconds": call.cached_age_seconds,
        "saved_usd": money.usd(call.saved_nano),
        "share_percent": f"{Decimal(call.cache_share_bps or 0).scaleb(-2):f}",
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
        "given_again": call.cached or None,
        "saved_usd": money.usd(call.saved_nano),
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
    """The price and the tariff that the call was held by."""
    price = call.price
    version = (price.pk, price.provider, price.model, price.valid_from, price.valid_to)
    parts = price.components.values_list("variant", "meter", "tier_from", "usd", "per")
    (found,) = rates((*version, *part) for part in parts)
    return found if call.tariff_id is None else found.under(tariffs.frozen(call.tariff_id))


def usage_of(call: Call) -> Usage:
    """What a call used, in disjoint classes."""
    used = [getattr(call, f"{meter}_tokens") for meter in (*METERS, "reasoning")]
    usage = Usage(*used)
    usage.meters, usage.variant = call.meters or {}, call.variant or STANDARD
    return usage


def cache_saving_nano(call: Call, price: Rates | None = None) -> int:
    """What the provider's prompt cache saved the tenant; negative where it was only written."""
    return (price or _rates(call)).cache_saving(usage_of(call))


def _price(call: Call, price: Rates) -> dict[str, Any]:
    return {
        "id": call.price_id,
        "provider": price.provider,
        "model": price.model,
        "source": call.price.source,
        "valid_from": price.valid_from.isoformat(),
        "valid_to": price.valid_to and price.valid_to.isoformat(),
        "usd_per_million": {
            part.meter: tariffs.plain(part.usd * money.MILLION / part.per)
            for part in sorted(price.parts, key=lambda part: _ORDER[part.meter])
            if (part.variant, part.tier_from) == (STANDARD, 0) and part.meter in TOKEN_METERS
        },
        "components": tariffs.components(price.parts),
        "variant": call.variant or STANDARD,
        "tariff": _tariff(call),
        "without_price": list(price.cost(usage_of(call)).marked),
    }


def _tariff(call: Call) -> dict[str, Any] | None:
    """What applied instead of the list price; None where nothing did."""
    if call.tariff_id is None:
        return None
    tariff = tariffs.frozen(call.tariff_id)
    return {
        "id": tariff.id,
        "markup_percent": f"{Decimal(tariff.markup_bps).scaleb(-2):+}",
        "components": tariffs.components(tariff.parts),
        "charges_retries": tariff.charges_retries,
        "own_key": tariff.own_key,
    }


def _lines(call: Call, price: Rates) -> Iterator[dict[str, Any]]:
    """Units times contract price for each meter; then what was quantised away, and what lay above the hold, if anything did."""
    if call.cached:
        if call.charged_nano:
            yield {"item": "share_of_saving", "usd": money.usd(call.charged_nano)}
        return
    exact, used = Decimal(0), usage_of(call)
    for line in price.lines(used):
        exact += line.nano
        counted, rate = _UNITS.get(line.per, ("tokens", "usd_per_million"))
        yield {
            "item": line.meter,
            counted: line.units,
            rate: tariffs.plain(line.usd),
            "usd": _exact_usd(line.nano),
        }
    cost = price.cost(used).charge_nano
    above = max(cost + call.retried_charge_nano - call.held_nano, 0)
    others = {
        "rounding": cost - exact,
        "earlier_tries": Decimal(call.retried_charge_nano),
        "above_hold": Decimal(-above),
        "difference": Decimal(call.charged_nano - cost - call.retried_charge_nano + above),
    }
    if call.state not in Call.LIVE:
        yield from ({"item": item, "usd": _exact_usd(nano)} for item, nano in others.items() if nano)


def _corrections(entries: list[LedgerEntry]) -> list[dict[str, Any]]:
    """What later entries added to the charge, or took off, and why."""
    return [
        {
            "number": entry.number,
            "at": entry.created_at.isoformat(),
            "reason": entry.reason,
            "usd": money.usd(entry.amount_nano if entry.credit == "revenue" else -entry.amount_nano),
        }
        for entry in entries
        if entry.kind == LedgerEntry.Kind.CORRECTION
    ]


def _exact_usd(nano: Decimal) -> str:
    """Exact USD with nine decimals, or as many as it takes."""
    usd = nano.scaleb(-9)
    decimals = max(9, -int(usd.normalize().as_tuple().exponent))
    return f"{usd:.{decimals}f}"


def _caps(call: Call) -> list[Standing]:
    return standings.standings_of(call.bucket_ids, tenant_id=call.tenant_id, now=timezone.now())


def _left_out(call: Call) -> list[dict[str, str]]:
    """Steps of the call's chain that it was not held for, since nothing bounds their cost, or they have no price."""
    payload = CallPayload.objects.filter(call_id=call.pk, kind=CallPayload.Kind.REQUEST).values_list(
        "headers", flat=True
    )
    left_out = (payload.first() or {}).get("left_out", [])
    return [{"provider": provider, "model": model, "reason": reason} for provider, model, reason in left_out]


def _attempt(call: Call, attempt: Attempt) -> dict[str, Any]:
    return {
        "n": attempt.n,
        "provider": attempt.provider,
        "model": attempt.model or None,
        "credential": attempt.credential or None,
        "outcome": attempt.outcome,
        "status": attempt.status,
        "error": attempt.error or None,
        "provider_request_id": attempt.provider_request_id or None,
        "started_at": attempt.started_at.isoformat(),
        "ended_at": attempt.ended_at and attempt.ended_at.isoformat(),
        "backoff_ms": attempt.backoff_ms,
        "provider_cost_usd": money.usd(attempt.cost_nano if attempt.n < call.tries else _last_cost(call)),
    }


def _last_cost(call: Call) -> int:
    """What the last attempt cost us: all that the call did, less what earlier ones did."""
    return call.provider_cost_nano - call.retried_cost_nano if call.state not in Call.LIVE else 0


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


def _told_of_cache(call: Call) -> str | None:
    """What was decided of the provider's prompt cache, as its reply told."""
    found = CallPayload.objects.filter(call_id=call.pk, kind=CallPayload.Kind.RESPONSE).values_list(
        "headers", flat=True
    )
    return (found.first() or {}).get("x-prompt-cache")


def _entry(entry: LedgerEntry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "kind": entry.kind,
        "debit": entry.debit,
        "credit": entry.credit,
        "usd": money.usd(entry.amount_nano),
        "reason": entry.reason or None,
    }
