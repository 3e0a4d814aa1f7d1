"""Nano-dollars: integers of a billionth of a US dollar, the only unit in which money is stored or added."""

from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal

NANO = 1_000_000_000
MILLION = Decimal(1_000_000)


def from_usd(usd: Decimal | str) -> int:
    """Nano-USD of an amount in USD; ValueError where it has more than nine decimals."""
    nano = Decimal(usd) * NANO
    if nano != nano.to_integral_value():
        msg = f"{usd} USD is finer than a nano-dollar; give at most nine decimals"
        raise ValueError(msg)
    return int(nano)


def quantised(nano: Decimal) -> int:
    """An exact sum, rounded once to whole nano-USD, half to even."""
    return int(nano.to_integral_value(rounding=ROUND_HALF_EVEN))


def ceiling(nano: Decimal) -> int:
    """An upper bound: holds round up."""
    return int(nano.to_integral_value(rounding=ROUND_CEILING))


def usd(nano: int) -> str:
    """All nine decimals, as receipts and headers show them: `0.014805632`."""
    sign = "-" if nano < 0 else ""
    whole, rest = divmod(abs(nano), NANO)
    return f"{sign}{whole}.{rest:09d}"
