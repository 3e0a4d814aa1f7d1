"""From a call on its way in to the hold that it asks for: its price by the book, and what the worker must know of it."""

from typing import Any

from aiplatform.gateway import callers, chain, prompt_cache
from aiplatform.gateway.cache import near
from aiplatform.gateway.catalogue import Catalogue
from aiplatform.gateway.tickets import Ticket
from aiplatform.gateway.wires import Facts
from usage import ledger


def of(ticket: Ticket, book: Catalogue) -> ledger.Hold:
    """What the call asks for, by the book's prices: the dearest step of its chain. Raises ModelNotFound, ModelNotPriced or
    NotBounded.
    """
    facts, principal = ticket.facts, ticket.principal
    # Its place in a line may have been long enough for a price to be succeeded.
    known = ticket.priced if ticket.priced and not ticket.queued else None
    route: chain.Route = known[1] if known and known[0] == book.revision else chain.route(ticket, book)
    place, rates = route.steps[0].way.place, route.steps[0].way.rates
    wanted = principal.default_max_tokens if facts.max_tokens is None else facts.max_tokens
    floor = min(principal.floor_max_tokens, wanted)
    base_nano, output_pico = route.dearest(wanted, floor)
    return ledger.Hold(
        call_id=ticket.call_id,
        key_id=principal.key_id,
        end_user=facts.end_user,
        request_id=ticket.request_id,
        wire=facts.wire,
        endpoint=facts.endpoint,
        model=facts.model[:200],
        provider=place.name,
        streamed=facts.streamed,
        price_id=rates.price_id,
        tariff_id=rates.tariff_id,
        base_nano=base_nano,
        output_pico=output_pico,
        wanted_tokens=wanted,
        floor_tokens=floor,
        headers=_told(ticket, route, wanted),
        body=facts.body,
        idempotency_hash=ticket.idempotency_hash,
        body_hash=ticket.body_hash,
        lane=ticket.lane,
        detached=ticket.detached,
    )


def _told(ticket: Ticket, route: chain.Route, wanted: int) -> dict[str, Any]:
    """What whoever carries the call out must know of it, besides its body."""
    facts, principal = ticket.facts, ticket.principal
    return {
        "forward": facts.forward,
        "set": facts.set_fields,
        "limit": [facts.max_tokens_field, facts.max_tokens],
        "hide_usage": facts.hide_usage,
        # What the bytes of the body do not tell, for an answer that comes without its usage.
        **({"likely": _likely(facts)} if facts.bound.meters or facts.bound.counted or facts.makes else {}),
        **_at_provider(facts),
        **route.frozen(ticket),
        **({"on_disconnect": policy} if (policy := callers.policy(ticket)) != callers.FINISH else {}),
        **({"limits": ticket.taken} if ticket.taken else {}),
        **({"cache": cached} if (cached := _to_keep(ticket, wanted)) else {}),
        **({"near": told} if (told := near.told(ticket)) else {}),
        **({"prompt_cache": True} if principal.prompt_cache == prompt_cache.AUTO else {}),
    }


def _to_keep(ticket: Ticket, wanted: int) -> list[Any] | None:
    """What the worker must know to keep the answer: the question, for how long, the policy and the output limit that are part
    of it, and whether others wait for it.
    """
    if not ticket.question or ticket.wish is None:
        return None
    return [ticket.question, ticket.wish.ttl_seconds, ticket.policy_version, wanted, ticket.is_leading]


def _likely(facts: Facts) -> list[Any]:
    likely = facts.likely
    return [likely.input, likely.meters, likely.output]


def _at_provider(facts: Facts) -> dict[str, Any]:
    """What the worker must know of kept objects, and of the path where it is not the endpoint's own."""
    said = {
        "target": facts.target,
        "credential": facts.credential,
        "makes": facts.makes,
        "figures": facts.figures,
    }
    return {name: value for name, value in said.items() if value} | (
        {"names": [row.provider_id for row in facts.objects]} if facts.objects else {}
    )


def likely_tokens(ticket: Ticket) -> int:
    """Against tokens per minute a call counts what its input is likely to be, not the bound that its hold needs."""
    likely = ticket.facts.likely
    facts, usual = ticket.facts, ticket.principal.default_max_tokens
    output = (usual if facts.max_tokens is None else facts.max_tokens) * facts.choices
    return likely.input + sum(likely.meters.values()) + output
