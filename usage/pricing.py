"""What a call costs: sheets of rates frozen at admission, its exact rating, and the worst case that its hold must cover.

All arithmetic is in whole units of 10⁻²² USD: a price has at most 12 decimals per million, a markup is in basis points, so
every product is an exact integer, and each figure of a call is rounded once, half to even.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import NamedTuple

from aiplatform.lib import money
from aiplatform.lib.errors import ApiError
from aiplatform.providers.base import Usage

STANDARD = "standard"
VARIANTS = (STANDARD, "batch", "flex", "priority", "fast")
INPUT_METERS = ("input", "cache_read", "cache_write_5m", "cache_write_1h")
TEXT_METERS = (*INPUT_METERS, "output")
RARE_INPUT_METERS = ("input_audio", "cache_audio_read", "input_image", "cache_image_read")
TOKEN_METERS = (*TEXT_METERS, *RARE_INPUT_METERS, "output_audio", "output_image")
# An image by its size and quality, a second of audio, a character that is spoken.
IMAGE_METERS = ("image_256", "image_512", "image_1024", "image_wide", "image_hd_1024", "image_hd_wide")
UNIT_METERS = (*IMAGE_METERS, "input_seconds", "input_characters")
FEE_METERS = ("web_search", "file_search", *UNIT_METERS)
METERS = (*TOKEN_METERS, *FEE_METERS)
# Of how many units a price is told, where it is not a million.
PER = {"web_search": 1000, "file_search": 1000, "input_seconds": 1, **dict.fromkeys(IMAGE_METERS, 1)}
# A class of cache without a price of its own costs what its input costs, as if nothing had been cached.
LIKE = {
    "cache_read": "input",
    "cache_write_5m": "input",
    "cache_write_1h": "input",
    "cache_audio_read": "input_audio",
    "input_image": "input",  # chat models bill what an image costs as tokens of text, and often count it as such
    "cache_image_read": "input_image",
    "output_image": "output",
}
# What may be billed instead of what a bound names; all of these are classes of the same tokens.
_CLASSES = {
    "input": INPUT_METERS,
    "input_audio": ("input_audio", "cache_audio_read", *INPUT_METERS),  # where a provider does not tell them from text
    "input_image": ("input_image", "cache_image_read", *INPUT_METERS),
}
_CACHED = ("cache_read", "cache_write_5m", "cache_write_1h")
WHOLE = 10_000  # basis points
_UNITS = 10**22  # of a US dollar
_NANO = _UNITS // money.NANO
_PICO = _NANO // 1000


class NotBounded(ApiError):
    """Something that this call may be billed for has no price, so nothing could hold its cost."""

    status = 402
    code = "model_not_priced"


class Bound(NamedTuple):
    """What a call can consume at most, as its wire read it from the request.

    `input_tokens` may be billed as text of any cache class; `meters` bounds the units of each rarer class (tokens or calls);
    output is billed as the dearest of `output_meters`, `choices` times; and any of `variants` may be what is served,
    or of those of `may_serve` that have a price: the request leaves these to the provider.

    `counted` is what the provider bills as far as the request shows it, for answers without usage. `instead` is the same
    call in other units (by the image, by tokens), for a model that has a price of those.
    """

    input_tokens: int
    meters: Mapping[str, int] = MappingProxyType({})
    output_meters: tuple[str, ...] = ("output",)
    choices: int = 1
    variants: tuple[str, ...] = (STANDARD,)
    may_serve: tuple[str, ...] = ()
    counted: Usage | None = None
    instead: "Bound | None" = None


class Part(NamedTuple):
    """One figure of a price: USD per so many units, for all units of a call whose input is longer than `tier_from` tokens."""

    variant: str
    meter: str
    tier_from: int
    usd: Decimal
    per: int


class Version(NamedTuple):
    """Which price of which model, and when it applies."""

    price_id: int
    provider: str
    model: str
    valid_from: datetime
    valid_to: datetime | None


class Tariff(NamedTuple):
    """What a tenant pays instead of the list price: fixed figures, and a markup (or a discount) on all others."""

    id: int
    markup_bps: int
    parts: tuple[Part, ...] = ()
    charges_retries: bool = False
    own_key: bool = False
    """The call goes on the tenant's own credential, so the provider bills him and not us."""


class Cost(NamedTuple):
    """Nano-USD of a call at contract price, at list price, and as the provider bills it; `marked` names what had no price."""

    charge_nano: int
    list_nano: int
    provider_cost_nano: int
    marked: tuple[str, ...] = ()


class Line(NamedTuple):
    """So many units of a meter at a contract price; `nano` is exact."""

    meter: str
    units: int
    usd: Decimal
    per: int
    nano: Decimal


class _Band(NamedTuple):
    """The rates of one variant for inputs of more than `above` tokens, and the greatest of them and of the bands below."""

    above: int
    rates: dict[str, int]
    most: dict[str, int]


Sheet = dict[str, list[_Band]]


class Rates:
    """One version of a model's price under one tariff; immutable, and quick enough for each call's hold and settlement."""

    __slots__ = (
        "_contract",
        "_list",
        "charges_retries",
        "is_own_key",
        "model",
        "parts",
        "price_id",
        "provider",
        "tariff_id",
        "valid_from",
        "valid_to",
    )

    def __init__(self, version: Version, parts: Iterable[Part], tariff: Tariff | None = None) -> None:
        self.price_id, self.provider, self.model, self.valid_from, self.valid_to = version
        self.parts = tuple(parts)
        self.tariff_id = tariff.id if tariff else None
        self.charges_retries = bool(tariff and tariff.charges_retries)
        self.is_own_key = bool(tariff and tariff.own_key)
        self._list = _sheet((part, WHOLE) for part in self.parts)
        self._contract = _sheet(_contract_parts(self.parts, self._list, tariff)) if tariff else self._list

    def under(self, tariff: Tariff | None) -> "Rates":
        """The same price under this tariff."""
        version = Version(self.price_id, self.provider, self.model, self.valid_from, self.valid_to)
        return Rates(version, self.parts, tariff)

    @property
    def is_complete(self) -> bool:
        """Whether anything has a price as it is usually served; what a call needs beyond that, its bound demands."""
        return STANDARD in self._list and bool(self._list[STANDARD][0].rates)

    def has_tiers(self, variant: str) -> bool:
        """Whether a rate of this variant depends on how long a call's input is."""
        return len(self._contract.get(variant, ())) > 1

    def covers(self, moment: datetime) -> bool:
        return self.valid_from <= moment and (self.valid_to is None or moment < self.valid_to)

    def fitting(self, bound: Bound) -> Bound:
        """The bound in the units that this model has a price of: the first one, where none fits."""
        one: Bound | None = bound
        while one is not None:
            try:
                self.bound(one)
            except NotBounded:
                one = one.instead
            else:
                return one
        return bound

    def bound(self, bound: Bound) -> tuple[int, int]:
        """No usage within the bound is charged more than (nano-USD, plus pico-USD for each token of the output limit).

        The dearest of the variants, cache classes and tiers that can be reached; both rounded up. Raises NotBounded where
        something that may be billed has no price.
        """
        total = bound.input_tokens
        for meter, units in bound.meters.items():
            if meter in RARE_INPUT_METERS:
                total += units
        base = output = 0
        for variant in (*bound.variants, *(one for one in bound.may_serve if one in self._contract)):
            bands = self._contract.get(variant)
            if bands is None:
                raise self._not_bounded(f"the variant {variant!r}")
            most = _band(bands, total).most
            if (
                variant not in bound.variants
            ):  # nobody asked for it, so it need not price everything: as `cost` would rate it
                most = {meter: _dearest(most, meter) for meter in (*bound.meters, *bound.output_meters)} | most
            try:
                base = max(base, _most_of_input(most, bound))
                output = max([output, *(most[meter] for meter in bound.output_meters)])
            except KeyError as error:
                raise self._not_bounded(f"{error.args[0]} ({variant})") from None
        return -(-base // _NANO), -(-output * bound.choices // _PICO)

    def cost(self, usage: Usage) -> Cost:
        """The exact cost, each figure rounded once, half to even; never raises, and nothing is free for want of a price.

        A variant without a price is rated by the dearest one, a meter without a price by the dearest token (a fee by the
        dearest fee), and `marked` names them.
        """
        total = input_total(usage)
        marked: list[str] = []
        variant = self._variant(usage, total, marked)
        list_nano = half_even(_exact(_band(self._list[variant], total), usage, marked), _NANO)
        if self._contract is self._list:
            return Cost(list_nano, list_nano, list_nano, tuple(marked))
        charged = _exact(_band(self._contract[variant], total), usage, None)
        return Cost(half_even(charged, _NANO), list_nano, 0 if self.is_own_key else list_nano, tuple(marked))

    def lines(self, usage: Usage) -> Iterator[Line]:
        """Each meter's units and contract price, in order; their sum, rounded, is the charge before its hold clips it."""
        total = input_total(usage)
        band = _band(self._contract[self._variant(usage, total, None)], total)
        for meter, count in counts(usage):
            rate = _rate(band, meter)
            per = PER.get(meter, int(money.MILLION))
            yield Line(meter, count, _decimal(rate * per, -22), per, _decimal(rate * count, -13))

    def token_rate(self, meter: str, total: int) -> int:
        """What a token of this class costs the tenant in a call of so many input tokens, in 10⁻²² USD."""
        return _rate(_band(self._contract[STANDARD], total), meter)

    def cache_saving(self, usage: Usage, total: int | None = None) -> int:
        """Nano-USD that the provider's prompt cache saved the tenant; negative where it was only written.

        `total` is the input that decides the tier, where the usage is that of several calls.
        """
        total = input_total(usage) if total is None else total
        band = _band(self._contract[self._variant(usage, total, None)], total)
        whole = _rate(band, "input")
        saved = sum((whole - _rate(band, meter)) * getattr(usage, meter) for meter in _CACHED)
        return half_even(saved, _NANO)

    def _variant(self, usage: Usage, total: int, marked: list[str] | None) -> str:
        """The variant that was served, or else the dearest one."""
        variant = usage.variant or STANDARD
        if variant in self._list:
            return variant
        if marked is not None:
            marked.append(f"variant {variant}")
        return max(sorted(self._list), key=lambda one: _exact(_band(self._list[one], total), usage, None))

    def _not_bounded(self, what: str) -> NotBounded:
        return NotBounded(
            f"The model {self.model!r} of {self.provider} has no price for {what}, which this call may be billed for; "
            "the operator sets one with `manage.py price_set`.",
            param="model",
        )


def input_total(usage: Usage) -> int:
    """All tokens that went in, cached or not: what decides the tier."""
    total = usage.input + usage.cache_read + usage.cache_write_5m + usage.cache_write_1h
    for meter in usage.meters:
        if meter in RARE_INPUT_METERS:
            total += usage.meters[meter]
    return total


def counts(usage: Usage) -> Iterator[tuple[str, int]]:
    """(meter, units) of what was used."""
    for meter in TEXT_METERS:
        if count := getattr(usage, meter):
            yield meter, count
    yield from ((meter, count) for meter, count in sorted(usage.meters.items()) if count)


def rates(rows: Iterable[tuple[int, str, str, datetime, datetime | None, str, str, int, Decimal, int]]) -> list[Rates]:
    """Rates of rows (price id, provider, model, from, to, variant, meter, tier from, USD, per); those without any standard
    figure are none.
    """
    found: dict[Version, list[Part]] = {}
    for price_id, provider, model, valid_from, valid_to, variant, meter, tier_from, usd, per in rows:
        version = Version(price_id, provider, model, valid_from, valid_to)
        found.setdefault(version, []).append(Part(variant, meter, tier_from, usd, per))
    made = (Rates(version, parts) for version, parts in found.items())
    return [one for one in made if one.is_complete]


def _contract_parts(parts: tuple[Part, ...], listed: Sheet, tariff: Tariff) -> Iterator[tuple[Part, int]]:
    """The list's figures with their markup, and instead of those of a variant's meter the fixed ones, where there are any."""
    known = [part for part in tariff.parts if part.variant in listed and part.meter in listed[part.variant][0].rates]
    fixed = {(part.variant, part.meter) for part in known}
    yield from ((part, WHOLE) for part in known)
    yield from ((part, WHOLE + tariff.markup_bps) for part in parts if (part.variant, part.meter) not in fixed)


def _sheet(parts: Iterable[tuple[Part, int]]) -> Sheet:
    """Bands by variant, the lowest first."""
    figures: dict[str, dict[str, dict[int, int]]] = {}
    for part, bps in parts:
        rate = int(part.usd.scaleb(18)) * bps // part.per
        figures.setdefault(part.variant, {}).setdefault(part.meter, {})[part.tier_from] = rate
    for meters in figures.values():  # a fee is the same whatever way a call is served, unless it is said
        for meter in FEE_METERS:
            if meter in figures.get(STANDARD, {}):
                meters.setdefault(meter, figures[STANDARD][meter])
    return {variant: list(_bands(meters)) for variant, meters in figures.items()}


def _bands(meters: dict[str, dict[int, int]]) -> Iterator[_Band]:
    most: dict[str, int] = {}
    for tier in sorted({0, *(tier for tiers in meters.values() for tier in tiers)}):
        rates = {
            meter: tiers[max(at for at in tiers if at <= tier)]
            for meter, tiers in meters.items()
            if any(at <= tier for at in tiers)
        }
        for cached, whole in LIKE.items():
            if whole in rates:
                rates.setdefault(cached, rates[whole])
        dearest = {
            meter: max(rates[each] for each in _CLASSES.get(meter, (meter,)) if each in rates) for meter in rates
        }
        most = {meter: max(rate, most.get(meter, 0)) for meter, rate in dearest.items()}
        yield _Band(tier or -1, rates, most)


def _most_of_input(most: dict[str, int], bound: Bound) -> int:
    exact = most["input"] * bound.input_tokens if bound.input_tokens else 0
    for meter, units in bound.meters.items():
        if units:
            exact += most[meter] * units
    return exact


def _band(bands: list[_Band], total: int) -> _Band:
    """The band with the greatest threshold that the input is longer than; its rates are those of all units."""
    found = bands[0]
    for band in bands:
        if total > band.above:
            found = band
    return found


def _exact(band: _Band, usage: Usage, missing: list[str] | None) -> int:
    """Units of 10⁻²² USD."""
    rates = band.rates
    try:
        exact = rates["input"] * usage.input + rates["output"] * usage.output
        if usage.cache_read or usage.cache_write_5m or usage.cache_write_1h:
            exact += rates["cache_read"] * usage.cache_read
            exact += rates["cache_write_5m"] * usage.cache_write_5m + rates["cache_write_1h"] * usage.cache_write_1h
        for meter, count in usage.meters.items():
            exact += rates[meter] * count
    except KeyError:
        exact = 0
        for meter, count in counts(usage):
            exact += _rate(band, meter) * count
            if meter not in rates and missing is not None:
                missing.append(meter)
    return exact


def _rate(band: _Band, meter: str) -> int:
    """The meter's rate, or else that of the dearest fee or token."""
    found = band.rates.get(meter)
    return _dearest(band.rates, meter) if found is None else found


def _dearest(rates: Mapping[str, int], meter: str) -> int:
    is_alike: Callable[[str], bool] = FEE_METERS.__contains__ if meter in FEE_METERS else TOKEN_METERS.__contains__
    return max((rate for one, rate in rates.items() if is_alike(one)), default=max(rates.values()))


def _decimal(digits: int, exponent: int) -> Decimal:
    """Exact, however many digits: arithmetic of Decimals would round to 28."""
    return Decimal(f"{digits}E{exponent}")


def half_even(exact: int, unit: int) -> int:
    """`exact` in whole units, half to even."""
    whole, rest = divmod(exact, unit)
    return whole + (2 * rest > unit or (2 * rest == unit and whole % 2 == 1))
