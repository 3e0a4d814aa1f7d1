"""What tokens cost: rates frozen at admission, the exact rating of a call, and the worst case that its hold must cover."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_CEILING, Decimal

from aiplatform.lib import money
from aiplatform.providers.base import Usage

INPUT_METERS = ("input", "cache_read", "cache_write_5m", "cache_write_1h")


@dataclass(frozen=True, slots=True)
class Bound:
    """What a call can consume at most, as its wire read it from the request.

    `input_tokens` may be billed as text of any cache class; `meters` bounds the units of each rarer class (tokens or calls);
    output is billed as the dearest of `output_meters`, `choices` times; and any of `variants` may be what is served.
    """

    input_tokens: int
    meters: Mapping[str, int] = field(default_factory=dict)
    output_meters: tuple[str, ...] = ("output",)
    choices: int = 1
    variants: tuple[str, ...] = ("standard",)


@dataclass(frozen=True, slots=True)
class Rates:
    """One price row, in nano-USD per token by meter. Cache classes without a price of their own cost what input costs."""

    price_id: int
    provider: str
    model: str
    valid_from: datetime
    valid_to: datetime | None
    nano_per_token: dict[str, Decimal]

    def covers(self, moment: datetime) -> bool:
        return self.valid_from <= moment and (self.valid_to is None or moment < self.valid_to)

    def rate(self, meter: str) -> Decimal:
        return self.nano_per_token.get(meter, self.nano_per_token["input"])

    def cost_nano(self, usage: Usage) -> int:
        """Nano-USD of a call's tokens: exact components, quantised once."""
        exact = sum((self.rate(meter) * getattr(usage, meter) for meter in (*INPUT_METERS, "output")), Decimal(0))
        return money.quantised(exact)

    def input_bound_nano(self, input_tokens: int) -> int:
        """No input of at most so many tokens costs more, whatever class the provider puts it in."""
        return money.ceiling(max(self.rate(meter) for meter in INPUT_METERS) * input_tokens)

    def output_pico(self, choices: int) -> int:
        """Pico-USD (1e-12) of one more output token in each of `choices` answers, rounded up."""
        return int((self.rate("output") * 1000 * choices).to_integral_value(rounding=ROUND_CEILING))


def rates(rows: Iterable[tuple[int, str, str, datetime, datetime | None, str, Decimal, int]]) -> list[Rates]:
    """Rates of rows (price id, provider, model, from, to, meter, USD, per); those without input or output are none."""
    found: dict[int, Rates] = {}
    for price_id, provider, model, valid_from, valid_to, meter, usd, per in rows:
        one = found.setdefault(price_id, Rates(price_id, provider, model, valid_from, valid_to, {}))
        one.nano_per_token[meter] = usd * money.NANO / per
    return [one for one in found.values() if {"input", "output"} <= one.nano_per_token.keys()]
