"""Which model is served where and at which price: a copy in memory, kept true by the catalogue's revision.

Admission compares the revision inside its own statement, so a call is never held by a price that has been succeeded.
"""

import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from aiplatform.lib import postgres
from aiplatform.lib.errors import ApiError
from aiplatform.providers.base import SANDBOX
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
class Place:
    """Where a provider is to be reached, and where its secret is to be found."""

    name: str
    wire: str
    base_url: str
    secret_ref: str
    model_names: frozenset[str]


@dataclass(slots=True)
class Catalogue:
    """One revision of providers and prices."""

    revision: int
    places: dict[tuple[str, str], Place]
    by_wire: dict[str, list[Place]]
    prices: dict[tuple[str, str], list[Rates]]
    by_id: dict[int, Rates]
    tariffs: TariffBook = field(default_factory=TariffBook)
    contracts: dict[tuple[int, int], Rates] = field(default_factory=dict)
    created: dict[str, int] = field(default_factory=dict)
    loaded_at: float = field(default_factory=time.monotonic)

    def route(self, wire: str, model: str, environment_kind: str, tenant_id: UUID) -> tuple[Place, Rates]:
        """The place that serves `model` on `wire`, and what this tenant pays for it now.

        Raises ModelNotFound or ModelNotPriced.
        """
        now = datetime.now(UTC)
        if environment_kind == BUILT_IN:
            return self.place(BUILT_IN, wire), self._price(BUILT_IN, "*", now)
        serving = [
            place
            for place in self.by_wire.get(wire, [])
            if model in place.model_names or (not place.model_names and (place.name, model) in self.prices)
        ]
        if not serving:
            other = sorted(
                {place.wire for places in self.by_wire.values() for place in places if model in place.model_names}
            )
            hint = f" on this wire; it is served on the {other[0]} wire" if other else ""
            raise ModelNotFound(
                f"The model {model[:200]!r} is not served{hint}. GET /v1/models lists what is.", param="model"
            )
        name = serving[0].name
        price, tariff = self._price(name, model, now), self.tariffs.tariff(tenant_id, name, model, now)
        return serving[0], self._under(price, tariff) if tariff else price

    def place(self, provider: str, wire: str) -> Place:
        """The provider of a call; the built-in one speaks every wire."""
        if provider == BUILT_IN:
            return Place(BUILT_IN, wire, SANDBOX, "", frozenset())
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

    def models(self, wire: str, environment_kind: str) -> list[tuple[str, str, int]]:
        """(name, owner, Unix time) of all models that can be called on `wire`."""
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
        return sorted((model, owner, at) for (model, owner), at in names.items())

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


def load() -> Catalogue:
    """Reads the catalogue; the revision first, so that a change meanwhile makes the copy stale, never wrong."""
    revision = postgres.run("SELECT revision FROM usage_catalogue WHERE id = 1")[0].revision
    places = [
        Place(row.name, row.wire, row.base_url, row.secret_ref or "", frozenset(row.model_names))
        for row in postgres.run(
            """SELECT p.name, p.wire, p.base_url, p.model_names, c.secret_ref FROM tenants_provider p
               LEFT JOIN tenants_providercredential c ON c.provider_id = p.id AND c.tenant_id IS NULL
               WHERE p.is_enabled ORDER BY p.id"""
        )
    ]
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
        tariffs.load(), created=created,
    )  # fmt: skip


def frozen_rates(price_id: int, tariff_id: int | None = None) -> Rates:
    """The rates that a call was held by, succeeded or not."""
    return current().frozen(price_id, tariff_id)


def _succeeded(price_id: int) -> Rates:
    return rates(postgres.run(f"{_PRICES} WHERE p.id = %s", [price_id]))[0]
