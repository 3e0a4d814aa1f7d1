"""Which model is served where and at which price: a copy in memory, kept true by the catalogue's revision.

Admission compares the revision inside its own statement, so a call is never held by a price that has been succeeded.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from aiplatform.gateway import translate
from aiplatform.gateway.translate import Translation
from aiplatform.lib import postgres
from aiplatform.lib.errors import ApiError
from aiplatform.providers.base import SANDBOX
from aiplatform.providers.registry import Door
from usage import tariffs
from usage.pricing import Rates, Tariff, rates
from usage.tariffs import TariffBook

BUILT_IN = "sandbox"


class ModelNotFound(ApiError):
    """This model is not served here."""

    status = 404
    code = "model_not_found"


class ProviderNotFound(ApiError):
    """No provider is set up on this wire."""

    status = 404
    code = "provider_not_found"


class ModelNotPriced(ApiError):
    """This model has no price, and nothing is sent that has none."""

    status = 402
    code = "model_not_priced"


@dataclass(frozen=True, slots=True)
class Credential:
    """A provider's secret by reference, and what may be asked of it; a limit that is None is none."""

    id: int
    name: str
    secret_ref: str
    tenant_id: UUID | None
    weight: int = 1
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None

    @property
    def is_own(self) -> bool:
        """Whether a tenant brought it."""
        return self.tenant_id is not None


NO_CREDENTIAL = Credential(0, "", "", None)  # of a provider that needs none


@dataclass(frozen=True, slots=True)
class Place:
    """Where a provider is to be reached, and by which credentials."""

    name: str
    wire: str
    base_url: str
    model_names: frozenset[str]
    credentials: tuple[Credential, ...] = ()
    api_version: str = ""
    key_header: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    named_limit_field: str = ""
    has_responses: bool = True

    @property
    def limit_field(self) -> str:
        """By which field chat completions are bounded there: OpenAI's reasoning models listen to the newer one alone, which
        other servers may ignore (Ollama does).
        """
        if self.named_limit_field:
            return self.named_limit_field
        host = urlsplit(self.base_url).hostname or ""
        return "max_completion_tokens" if host.endswith((".openai.com", ".azure.com")) else "max_tokens"

    def translation(self, wire: str, endpoint: str) -> Translation | None:
        """How a request of this endpoint of `wire` is put into what is spoken here; None where that is the same, or nothing."""
        if self.wire == wire and (self.has_responses or endpoint != "responses"):
            return None
        return translate.between(wire, endpoint, self.wire)

    @property
    def secret_ref(self) -> str:
        return self.credentials[0].secret_ref if self.credentials else ""

    @property
    def door(self) -> Door:
        return Door(self.api_version, self.key_header, self.headers)

    def has_own(self, tenant_id: UUID) -> bool:
        """Whether this tenant brought credentials of its own, which all its calls here then use."""
        return any(one.tenant_id == tenant_id for one in self.credentials)

    def usable(self, tenant_id: UUID) -> tuple[Credential, ...]:
        """The tenant's own credentials, else the platform's, else none where none was ever named."""
        own = tuple(one for one in self.credentials if one.tenant_id == tenant_id)
        ours = own or tuple(one for one in self.credentials if one.tenant_id is None)
        return ours or (NO_CREDENTIAL,)

    def by_reference(self, secret_ref: str) -> Credential:
        """The credential by which a kept object was made; one that was removed meanwhile still opens its own."""
        known = (one for one in self.credentials if one.secret_ref == secret_ref)
        return next(known, Credential(0, "", secret_ref, None))


@dataclass(frozen=True, slots=True)
class Way:
    """One step of a chain: a model at a place, at this tenant's price."""

    place: Place
    model: str
    rates: Rates


@dataclass(frozen=True, slots=True)
class Chain:
    """Where a call may be served, in order, each step with siblings and weights; and what was left out, and why."""

    groups: tuple[tuple[tuple[Way, int], ...], ...]
    left_out: tuple[tuple[str, str, str], ...] = ()


@dataclass(slots=True)
class Catalogue:
    """One revision of providers, routes and prices."""

    revision: int
    places: dict[tuple[str, str], Place]
    by_wire: dict[str, list[Place]]
    prices: dict[tuple[str, str], list[Rates]]
    by_id: dict[int, Rates]
    tariffs: TariffBook = field(default_factory=TariffBook)
    contracts: dict[tuple[int, int], Rates] = field(default_factory=dict)
    created: dict[str, int] = field(default_factory=dict)
    routes: dict[tuple[UUID | None, UUID | None], dict[str, Any]] = field(default_factory=dict)
    loaded_at: float = field(default_factory=time.monotonic)

    def chain(
        self, wire: str, endpoint: str, model: str, *, environment_kind: str, tenant_id: UUID, environment_id: UUID
    ) -> Chain:
        """Where `model`, or what that name means in this environment, is served for callers of an endpoint of `wire`.

        Raises ModelNotFound, or ModelNotPriced where the first step has no price; later steps without one are left out.
        """
        steps = None if environment_kind == BUILT_IN else self._meaning(model, tenant_id, environment_id)
        if steps is None:
            place, rates = self.route(wire, model, environment_kind, tenant_id, endpoint)
            return Chain((((Way(place, model, rates), 1),),))
        groups: list[tuple[tuple[Way, int], ...]] = []
        left_out: list[tuple[str, str, str]] = []
        missing: ApiError | None = None
        for siblings in steps:
            group: list[tuple[Way, int]] = []
            for place, one, weight in self._expanded(siblings):
                try:
                    group.append((self._way(wire, endpoint, place, one, tenant_id), weight))
                except ApiError as error:
                    left_out.append((place.name, one, error.code))
                    missing = missing or error
            if group:
                groups.append(tuple(group))
            elif missing is not None and not groups and missing.code == ModelNotPriced.code:
                raise missing
        if not groups:
            raise missing or ModelNotFound(
                f"No provider serves a step of {model[:200]!r} now; `manage.py route_list` shows them.", param="model"
            )
        return Chain(tuple(groups), tuple(left_out))

    def _meaning(self, name: str, tenant_id: UUID, environment_id: UUID) -> list[list[dict[str, Any]]] | None:
        """The steps of a route: the environment's, else the tenant's, else the platform's."""
        for scope in ((tenant_id, environment_id), (tenant_id, None), (None, None)):
            if (found := self.routes.get(scope)) and name in found:
                steps: list[list[dict[str, Any]]] = found[name]
                return steps
        return None

    def _expanded(self, siblings: list[dict[str, Any]]) -> Iterator[tuple[Place, str, int]]:
        """Each sibling's places: the one it names, or all that serve its model."""
        for one in siblings:
            for place in self.places.values():
                named = place.name == one["provider"] if one["provider"] else self._serves(place, one["model"])
                if named:
                    yield place, one["model"], one["weight"]

    def _way(self, wire: str, endpoint: str, place: Place, model: str, tenant_id: UUID) -> Way:
        """Raises ModelNotFound or ModelNotPriced."""
        if not reaches(wire, endpoint, place.wire) or not (
            place.model_names == frozenset() or model in place.model_names
        ):
            raise ModelNotFound(
                f"The model {model[:200]!r} of {place.name} cannot be reached from here.", param="model"
            )
        return Way(place, model, self._contracted(place, model, tenant_id, datetime.now(UTC)))

    def _serves(self, place: Place, model: str) -> bool:
        return model in place.model_names or (not place.model_names and (place.name, model) in self.prices)

    def route(
        self,
        wire: str,
        model: str,
        environment_kind: str,
        tenant_id: UUID,
        endpoint: str = "",
        *,
        own: bool | None = None,
    ) -> tuple[Place, Rates]:
        """The place that serves `model` on `wire`, and what this tenant pays for it now; for an endpoint that can be
        translated also one on the other wire. `own` says whether it goes on the tenant's own credential, where that is
        settled already by what it names.

        Raises ModelNotFound or ModelNotPriced.
        """
        now = datetime.now(UTC)
        if environment_kind == BUILT_IN:
            return self.place(BUILT_IN, wire), self._price(BUILT_IN, "*", now)
        serving = [place for place in self.by_wire.get(wire, []) if self._serves(place, model)] or [
            place
            for place in self.places.values()
            if reaches(wire, endpoint, place.wire) and self._serves(place, model)
        ]
        if not serving:
            other = sorted(
                {place.wire for places in self.by_wire.values() for place in places if model in place.model_names}
            )
            hint = f" on this wire; it is served on the {other[0]} wire" if other else ""
            raise ModelNotFound(
                f"The model {model[:200]!r} is not served{hint}. GET /v1/models lists what is.", param="model"
            )
        return serving[0], self._contracted(serving[0], model, tenant_id, now, own=own)

    def _contracted(
        self, place: Place, model: str, tenant_id: UUID, now: datetime, *, own: bool | None = None
    ) -> Rates:
        """What this tenant pays there: by its tariffs, or as its plan says where it brings its own credential."""
        price = self._price(place.name, model, now)
        if place.has_own(tenant_id) if own is None else own:
            return self._under(price, self.tariffs.own_key(tenant_id, now))
        tariff = self.tariffs.tariff(tenant_id, place.name, model, now)
        return self._under(price, tariff) if tariff else price

    def place(self, provider: str, wire: str) -> Place:
        """The provider of a call; the built-in one speaks every wire."""
        if provider == BUILT_IN:
            return Place(BUILT_IN, wire, SANDBOX, frozenset())
        return self.places[provider, wire]

    def keeper(self, wire: str, environment_kind: str, provider: str = "") -> Place:
        """Where a request goes that names no model: to this provider, else to the one that was set up first.

        Raises ProviderNotFound.
        """
        if environment_kind == BUILT_IN:
            return self.place(BUILT_IN, wire)
        for place in self.by_wire.get(wire, []):
            if provider in {"", place.name} and place.base_url != SANDBOX:
                return place
        raise ProviderNotFound(f"No provider {provider!r} is set up on this wire." if provider else "")

    def free(self, environment_kind: str) -> Rates:
        """The price of what providers do for nothing."""
        owner = BUILT_IN if environment_kind == BUILT_IN else "*"
        return self._price(owner, "*", datetime.now(UTC))

    def models(
        self, wire: str, environment_kind: str, tenant_id: UUID | None = None, environment_id: UUID | None = None
    ) -> list[tuple[str, str, int]]:
        """(name, owner, Unix time) of all models that can be called on `wire`, and of the names that routes give."""
        now = datetime.now(UTC)
        if environment_kind == BUILT_IN:
            return [("sandbox-1", BUILT_IN, 0)]
        names = {
            (model, place.name): self.created.get(place.name, 0)
            for place in reversed(self.by_wire.get(wire, []))
            for provider, model in self.prices
            if provider == place.name and (model in place.model_names or not place.model_names)
            if any(one.covers(now) for one in self.prices[provider, model])
        }
        if tenant_id is not None and environment_id is not None:
            names = self._aliases(wire, tenant_id, environment_id) | names
        return sorted((model, owner, at) for (model, owner), at in names.items())

    def _aliases(self, wire: str, tenant_id: UUID, environment_id: UUID) -> dict[tuple[str, str], int]:
        """Names of routes, each with its first step's provider as its owner; those that lead nowhere now are left out."""
        found: dict[tuple[str, str], int] = {}
        scopes = ((None, None), (tenant_id, None), (tenant_id, environment_id))
        for alias in {alias for scope in scopes for alias in self.routes.get(scope, {})}:
            try:
                chain = self.chain(
                    wire, "", alias, environment_kind="", tenant_id=tenant_id, environment_id=environment_id
                )
            except ApiError:
                continue
            owner = chain.groups[0][0][0].place.name
            found[alias, owner] = self.created.get(owner, 0)
        return found

    def frozen(self, price_id: int, tariff_id: int | None) -> Rates:
        """The rates that a call was held by, succeeded or not; raises Unavailable."""
        if tariff_id is not None and (known := self.contracts.get((price_id, tariff_id))):
            return known
        price = self.by_id.get(price_id) or _succeeded(price_id)
        return self._under(price, tariffs.frozen(tariff_id)) if tariff_id is not None else price

    def _under(self, price: Rates, tariff: Tariff) -> Rates:
        key = price.price_id, tariff.id
        if key not in self.contracts:
            self.contracts[key] = price.under(tariff)
        return self.contracts[key]

    def _price(self, provider: str, model: str, now: datetime) -> Rates:
        for one in self.prices.get((provider, model), []):
            if one.covers(now):
                return one
        raise ModelNotPriced(
            f"The model {model!r} of {provider} has no price now; the operator sets one with `manage.py price_set`.",
            param="model",
        )


_PRICES = """SELECT p.id, p.provider, p.model, p.valid_from, p.valid_to, c.variant, c.meter, c.tier_from, c.usd, c.per
    FROM usage_price p JOIN usage_pricecomponent c ON c.price_id = p.id"""
_current: Catalogue | None = None
_lock = threading.Lock()


def current(*, newer_than: int = 0, max_age: float = 60.0) -> Catalogue:
    """The catalogue in memory, read again where its revision is not newer than asked or it is older than `max_age` seconds."""
    global _current  # noqa: PLW0603 - one copy a process is the point
    found = _current
    if found is not None and found.revision > newer_than and time.monotonic() - found.loaded_at < max_age:
        return found
    with _lock:
        if _current is None or _current is found:
            _current = load()
        return _current


def renewed(book: Catalogue) -> Catalogue:
    """The book, or the newest one where it has changed since: for what this one does not know."""
    if postgres.run("SELECT revision FROM usage_catalogue WHERE id = 1")[0].revision == book.revision:
        return book
    return current(newer_than=book.revision)


def load() -> Catalogue:
    """Reads the catalogue; the revision first, so that a change meanwhile makes the copy stale, never wrong."""
    revision = postgres.run("SELECT revision FROM usage_catalogue WHERE id = 1")[0].revision
    places = _places()
    found = rates(postgres.run(f"{_PRICES} WHERE p.valid_to IS NULL OR p.valid_to > now()"))
    by_wire: dict[str, list[Place]] = {}
    for place in places:
        by_wire.setdefault(place.wire, []).append(place)
    prices: dict[tuple[str, str], list[Rates]] = {}
    for one in found:
        prices.setdefault((one.provider, one.model), []).append(one)
    created: dict[str, Any] = {
        row.name: int(row.at)
        for row in postgres.run("SELECT name, extract(epoch FROM created_at) AS at FROM tenants_provider")
    }
    return Catalogue(
        revision, {(place.name, place.wire): place for place in places}, by_wire, prices, {one.price_id: one for one in found},
        tariffs.load(), created=created, routes=_routes(),
    )  # fmt: skip


def _places() -> list[Place]:
    credentials: dict[int, list[Credential]] = {}
    for row in postgres.run(
        """SELECT provider_id, id, name, secret_ref, tenant_id, weight, rpm, tpm, concurrency FROM tenants_providercredential
           WHERE is_enabled ORDER BY provider_id, id"""
    ):
        credentials.setdefault(row[0], []).append(Credential(*row[1:]))
    return [
        Place(
            row.name, row.wire, row.base_url, frozenset(row.model_names), tuple(credentials.get(row.id, ())),
            row.api_version, row.key_header, tuple(sorted(row.headers.items())), row.limit_field, row.has_responses,
        )
        for row in postgres.run(
            """SELECT id, name, wire, base_url, model_names, api_version, key_header, headers, limit_field,
                   has_responses
               FROM tenants_provider
               WHERE is_enabled ORDER BY id"""
        )
    ]  # fmt: skip


def _routes() -> dict[tuple[UUID | None, UUID | None], dict[str, Any]]:
    found: dict[tuple[UUID | None, UUID | None], dict[str, Any]] = {}
    for row in postgres.run("SELECT tenant_id, environment_id, alias, steps FROM tenants_route"):
        found.setdefault((row.tenant_id, row.environment_id), {})[row.alias] = row.steps
    return found


def reaches(wire: str, endpoint: str, other: str) -> bool:
    """Whether a caller of this endpoint of `wire` can be served by a provider on the other wire."""
    return wire == other or translate.between(wire, endpoint, other) is not None


def frozen_rates(price_id: int, tariff_id: int | None = None) -> Rates:
    """The rates that a call was held by, succeeded or not."""
    return current().frozen(price_id, tariff_id)


def _succeeded(price_id: int) -> Rates:
    return rates(postgres.run(f"{_PRICES} WHERE p.id = %s", [price_id]))[0]
