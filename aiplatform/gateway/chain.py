"""Where a call may be served: its chain at admission, frozen with its prices, and read again by the worker."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from aiplatform.gateway import batches, catalogue, endpoints, prompt_cache
from aiplatform.gateway.catalogue import Catalogue, Chain, Credential, Place, Way
from aiplatform.gateway.tickets import Ticket
from aiplatform.gateway.translate import Translation
from aiplatform.gateway.wires import Asked, BadRequest, Facts, with_fields
from aiplatform.lib.errors import ApiError
from aiplatform.providers.endpoints import ENDPOINTS
from usage import ledger
from usage.pricing import Bound, Rates

MOST_STEPS = 16
Thing = TypeVar("Thing")


class ProviderUnreachable(ApiError):
    """The provider could not be reached; nothing was sent and nothing was charged."""

    status = 502
    code = "provider_unreachable"


@dataclass(frozen=True, slots=True)
class Priced:
    """A step that the call can be held for: nano-USD, plus pico-USD for each token of its output limit."""

    way: Way
    base_nano: int
    output_pico: int


@dataclass(frozen=True, slots=True)
class Route:
    """The steps of one call in the order in which they are tried, and those that are left out, with the reason's code."""

    steps: tuple[Priced, ...]
    left_out: tuple[tuple[str, str, str], ...]

    def dearest(self, wanted: int, least: int) -> tuple[int, int]:
        """What covers every step for any output limit between the two: the one that is dearest at both ends, else the dearer
        input with the dearer output.
        """

        def dearest_at(tokens: int) -> Priced:
            return max(self.steps, key=lambda step: step.base_nano * 1000 + step.output_pico * tokens)

        first = dearest_at(wanted)
        at_least = first.base_nano * 1000 + first.output_pico * least
        if all(step.base_nano * 1000 + step.output_pico * least <= at_least for step in self.steps):
            return first.base_nano, first.output_pico
        return max(step.base_nano for step in self.steps), max(step.output_pico for step in self.steps)

    def frozen(self, ticket: Ticket) -> dict[str, Any]:
        """What the worker must know of it; nothing where the call has one step, as it asks for it."""
        first = self.steps[0].way
        told: dict[str, Any] = {}
        if len(self.steps) > 1 or first.model != ticket.facts.model or first.place.wire != ticket.facts.wire:
            told["route"] = [
                [way.place.name, way.place.wire, way.model, way.rates.price_id, way.rates.tariff_id]
                for way in (step.way for step in self.steps)
            ]
        if self.left_out:
            told["left_out"] = [list(each) for each in self.left_out]
        return told


def route(ticket: Ticket, book: Catalogue) -> Route:
    """The call's chain at the book's prices; raises ModelNotFound, ModelNotPriced or NotBounded where its first step has none,
    and BadRequest where it cannot be put into its wire.

    Siblings are tried in an order that their weights decide and the call's id draws. A later step whose cost nothing bounds, or
    which cannot be asked what the caller asks, is left out.
    """
    steps: list[Priced] = []
    chain = _chain(ticket, book)
    left_out = list(chain.left_out)
    for group in chain.groups:
        refusal: ApiError | None = None
        for way in in_order(
            ticket.call_id.bytes, ((way, f"{way.place.name} {way.model}", each) for way, each in group)
        ):
            try:
                steps.append(_priced(ticket, way))
            except ApiError as error:
                refusal = refusal or error
                left_out.append((way.place.name, way.model, error.code))
        if not steps and refusal:
            raise refusal
    return Route(tuple(steps[:MOST_STEPS]), tuple(left_out))


def _chain(ticket: Ticket, book: Catalogue) -> Chain:
    """To where what the request names is kept, else to who serves its model."""
    facts, principal = ticket.facts, ticket.principal
    kind = principal.environment_kind
    # A batch's money is held for one provider, and its lines name their own models.
    is_batch = facts.is_free and bool(facts.makes)
    if facts.model and not (facts.provider or is_batch):
        chain = book.chain(
            facts.wire, facts.endpoint, facts.model, environment_kind=kind, tenant_id=principal.tenant_id,
            environment_id=principal.environment_id,
        )  # fmt: skip
        return _free(chain, book.free(kind)) if facts.is_free else chain
    place = book.keeper(facts.wire, kind, facts.provider)
    rates = book.free(kind)
    if facts.model:
        # What is kept is in one account, which pays though the tenant has brought a credential since.
        own = place.by_reference(facts.credential).is_own if facts.credential else None
        serving, price = book.route(facts.wire, facts.model, kind, principal.tenant_id, own=own)
        if facts.provider not in {"", serving.name}:
            raise BadRequest(
                f"What this request names is kept by {facts.provider}, and {facts.model[:200]!r} is served by {serving.name}."
            )
        place, rates = serving, rates if facts.is_free else price
    return Chain((((Way(place, facts.model, rates), 1),),))


def _free(chain: Chain, rates: Rates) -> Chain:
    groups = tuple(tuple((replace(way, rates=rates), weight) for way, weight in group) for group in chain.groups)
    return replace(chain, groups=groups)


def _priced(ticket: Ticket, way: Way) -> Priced:
    """What the request can cost at most as asked of this model: rules for images, and what is refused, go by its name."""
    facts = ticket.facts
    translation = way.place.translation(facts.wire, facts.endpoint)
    if translation or way.place.wire != facts.wire:
        bound = _translated(ticket, way, translation)
    elif way.model == facts.model or not facts.model:
        if facts.bound.instead:
            facts.bound = way.rates.fitting(facts.bound)
        bound = facts.bound
    else:
        bound = _read_again(facts, with_fields(facts.body, {"model": way.model}), facts.endpoint, facts.wire)
        bound = way.rates.fitting(bound) if bound.instead else bound
    return Priced(way, *way.rates.bound(bound))


def _read_again(facts: Facts, body: bytes, endpoint: str, wire: str) -> Bound:
    if "content-type" in facts.forward:
        raise BadRequest("The model of a form cannot stand for another; name the provider's own.", param="model")
    return endpoints.read(Asked(ENDPOINTS[wire, endpoint], body, {}, {}, "")).bound


def _translated(ticket: Ticket, way: Way, translation: Translation | None) -> Bound:
    """The bound of the request as that provider is asked it; raises BadRequest for what cannot be carried over."""
    facts = ticket.facts
    if translation is None:
        raise BadRequest(f"{facts.endpoint} cannot be asked of {way.place.name}.", param="model")
    limit = ticket.principal.default_max_tokens if facts.max_tokens is None else facts.max_tokens
    made = translation.request(
        facts.body, model=way.model, max_tokens=limit, limit_field=way.place.limit_field, created=0
    )
    return _read_again(facts, made.body, translation.provider_endpoint, way.place.wire)


def in_order(seed: bytes, weighted: Iterable[tuple[Thing, str, int]]) -> list[Thing]:
    """Things by weighted rendezvous: the same seed and names give the same order, and each is first as often as its weight
    says.

    Source: Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous"; weights by -weight / ln(hash).
    """
    found = list(weighted)
    if len(found) == 1:
        return [found[0][0]]

    def score(name: str, weight: int) -> float:
        digest = hashlib.blake2b(name.encode(), key=seed[:64], digest_size=8).digest()
        return -weight / math.log((int.from_bytes(digest) + 1) / (2**64 + 1))

    return [thing for thing, name, weight in sorted(found, key=lambda one: -score(one[1], one[2]))]


@dataclass(frozen=True, slots=True)
class Step:
    """One way in which a claimed call may be served, with the price that it was held by."""

    place: Place
    rates: Rates
    frozen: ledger.Step
    credentials: tuple[Credential, ...]

    @property
    def model(self) -> str:
        return self.frozen.model

    @property
    def is_own(self) -> bool:
        """Whether it goes on the tenant's own credential, so that the provider bills him."""
        return self.credentials[0].is_own

    def lane(self, credential: Credential) -> str:
        """Under which name headroom and breakers know it."""
        return f"{credential.id or self.place.name}:{self.model}"


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed call with all that it needs, so that nothing is asked of the database while it runs; `at` is the step that
    serves it.
    """

    call: Any
    steps: tuple[Step, ...]
    at: int = 0
    secret_ref: str = ""
    """The credential that served it, by reference."""
    money: "batches.Money | None" = None
    """Of a batch that this call creates."""

    @property
    def step(self) -> Step:
        return self.steps[self.at]

    @property
    def place(self) -> Place:
        return self.step.place

    @property
    def rates(self) -> Rates:
        return self.step.rates

    def served_by(self, at: int, secret_ref: str) -> "Job":
        return replace(self, at=at, secret_ref=secret_ref)


def prepare(call: Any, book: Catalogue) -> Job:
    """Raises ProviderUnreachable where the operator has removed all that could serve it, Unavailable where a price cannot be
    read.
    """
    if call.endpoint == batches.ENDPOINT:
        raise batches.BatchNotSent
    told = call.headers.get("route")
    if told is None:
        told = [[call.provider, call.wire, call.model, call.price_id, call.tariff_id]]
    found = [_step(call, ledger.Step(*each), book) for each in told]
    if None in found and (newest := catalogue.renewed(book)) is not book:  # it was held by a newer one
        found = [_step(call, ledger.Step(*each), newest) for each in told]
    steps = [step for step in found if step is not None]
    if not steps:
        raise ProviderUnreachable(f"The provider {call.provider!r} is not set up any more.")
    return Job(call, tuple(steps))


def _step(call: Any, frozen: ledger.Step, book: Catalogue) -> Step | None:
    """None where it cannot be carried out as it was held: its provider is gone, or who would pay the provider has changed."""
    try:
        place = book.place(frozen.provider, frozen.wire)
    except KeyError:
        return None
    rates = book.frozen(frozen.price_id, frozen.tariff_id)
    if kept_by := call.headers.get("credential"):  # what the call names is in that account
        return Step(place, rates, frozen, (place.by_reference(kept_by),))
    credentials = place.usable(call.tenant_id)
    is_own = any(one.is_own for one in credentials)
    if not credentials or (rates.provider == place.name and is_own != rates.is_own_key):  # what is free, is for both
        return None
    seed = (prompt_cache.seed(bytes(call.body)) if len(credentials) > 1 else None) or call.id.bytes
    ordered = in_order(seed, ((one, str(one.id), one.weight) for one in credentials))
    return Step(place, rates, frozen, tuple(ordered))


def seen_by(row: Any, book: Catalogue, secret_ref: str) -> Job:
    """The job of a call that was sent before, at its provider by its credential; raises ProviderUnreachable, Unavailable."""
    try:
        place = book.place(row.provider, row.wire)
    except KeyError:
        raise ProviderUnreachable(f"The provider {row.provider!r} is not set up any more.") from None
    frozen = ledger.Step(row.provider, row.wire, row.model, row.price_id, row.tariff_id)
    rates = book.frozen(row.price_id, row.tariff_id)
    return Job(row, (Step(place, rates, frozen, (place.by_reference(secret_ref),)),), secret_ref=secret_ref)


def names(steps: Sequence[Priced]) -> list[dict[str, str]]:
    """For people: which model at which provider."""
    return [{"provider": step.way.place.name, "model": step.way.model} for step in steps]


def left_out(steps: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """For people: what was left out of a chain, and why."""
    return [{"provider": provider, "model": model, "reason": reason} for provider, model, reason in steps]
