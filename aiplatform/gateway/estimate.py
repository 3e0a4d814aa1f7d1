"""`POST /v1/estimate`: what a call would cost and hold, by the very code that holds it; nothing is sent, held or stored."""

from typing import Any

from starlette.requests import Request

from aiplatform.gateway import catalogue, chain, endpoints, holds, me, refusals
from aiplatform.gateway.tickets import Ticket, worst_nano
from aiplatform.gateway.wires import BadRequest
from aiplatform.lib import money
from aiplatform.providers.base import Usage
from aiplatform.providers.endpoints import Endpoint
from usage.ledger import Hold
from usage.pricing import Rates
from usage.standings import Standing

PATH = "/v1/estimate"


def endpoint(request: Request) -> Endpoint:
    """Of which call this is the body: `?endpoint=`, else by the headers of the SDK. Raises BadRequest."""
    usual = "/v1/messages" if "anthropic-version" in request.headers else "/v1/chat/completions"
    found = endpoints.by_path(request.query_params.get("endpoint", usual))
    if found is None:
        raise BadRequest("`endpoint` is the path of a call that has a price, such as /v1/messages.", param="endpoint")
    return found


def quote(ticket: Ticket) -> dict[str, Any]:
    """Ready for JSON, USD with nine decimals. Raises what would refuse the call before its caps are asked."""
    book = catalogue.renewed(catalogue.current())
    hold = holds.of(ticket, book)
    free = hold.base_nano == 0 and hold.output_pico == 0
    found = me.on_django(lambda: me.binding(ticket.principal, ticket.facts.end_user))
    caps = [] if free else [_cap(one, hold) for one in found]
    strict = [one["affordable_max_tokens"] for one in caps if one["mode"] != "shadow"]
    granted = min([hold.wanted_tokens, *strict])
    fits = all(one["fits"] for one in caps if one["mode"] != "shadow")
    granted = granted if fits else hold.wanted_tokens
    route = chain.route(ticket, book)
    rates = route.steps[0].way.rates
    likely = ticket.facts.likely
    likely.output = granted * ticket.facts.choices or likely.output
    return {
        "model": hold.model,
        "provider": hold.provider,
        "chain": chain.names(route.steps),
        "left_out": chain.left_out(route.left_out),
        "price": _price(rates),
        "input_bound_tokens": ticket.facts.bound.input_tokens,
        "bound_of_rarer_units": dict(ticket.facts.bound.meters),
        "likely_input_tokens": likely.input,
        "choices": ticket.facts.choices,
        "max_tokens": granted,
        "max_tokens_injected": ticket.facts.max_tokens is None,
        "max_tokens_clamped": granted < hold.wanted_tokens,
        "worst_case_usd": money.usd(hold.base_nano - (-hold.output_pico * granted // 1000)),
        "likely_usd": money.usd(rates.cost(likely).charge_nano),
        "fits": fits,
        "caps": caps,
    }


def _price(rates: Rates) -> dict[str, Any]:
    """What the tenant pays for a token of each class, before any tier of long inputs."""
    one_each = Usage(input=1, cache_read=1, cache_write_5m=1, cache_write_1h=1, output=1)
    return {
        "id": rates.price_id,
        "tariff": rates.tariff_id,
        "usd_per_million": {line.meter: f"{line.usd.normalize():f}" for line in rates.lines(one_each)},
    }


def _cap(one: Standing, hold: Hold) -> dict[str, Any]:
    """Whether the call passes this cap as it stands: in full, or clamped to no fewer tokens than its floor."""
    affordable = refusals.affordable_tokens(hold, one.left_nano)
    return {
        "cap": one.cap_id,
        "scope": one.scope,
        "period": one.period,
        "mode": one.mode,
        "left_usd": money.usd(one.left_nano),
        "fits": one.left_nano >= hold.base_nano and affordable >= min(hold.floor_tokens, hold.wanted_tokens),
        "fits_in_full": one.left_nano >= worst_nano(hold),
        "affordable_max_tokens": affordable,
        "resets_at": one.resets_at and one.resets_at.isoformat(),
    }
