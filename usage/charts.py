"""Geometry of the chart of cost by day: columns in shares of the width, heights in pixels, so that text never scales."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from usage.reports import DaySpend

HEIGHT = 184  # pixels between the ground line and the top line
TOP = 8
SERIES = 4  # as many as there are colours; the last one takes what remains
OTHERS = "other models"
CORRECTIONS = "corrections"


@dataclass(frozen=True, slots=True)
class Piece:
    y: str
    height: str
    series: int


@dataclass(frozen=True, slots=True)
class Column:
    """One day: its pieces from the ground up, and its amounts in the order of the chart's names."""

    day: date
    x: str
    width: str
    middle: str
    pieces: list[Piece]
    amounts_nano: list[int]
    total_nano: int
    is_labelled: bool


@dataclass(frozen=True, slots=True)
class Line:
    y: float
    amount_nano: int


@dataclass(frozen=True)
class Chart:
    """Stacked columns of `names`, the dearest model first."""

    names: list[str]
    totals_nano: list[int]
    columns: list[Column]
    lines: list[Line]
    total_nano: int

    ground = TOP + HEIGHT
    foot = TOP + HEIGHT + 18
    others = OTHERS
    corrections = CORRECTIONS

    @property
    def ranking(self) -> list[tuple[str, int, str]]:
        """Name, nano-USD and share of the whole, cut to a tenth of a per cent."""
        whole = self.total_nano
        shares = [f"{1000 * total // whole / 10:.1f} %" if whole > 0 else "" for total in self.totals_nano]
        return list(zip(self.names, self.totals_nano, shares, strict=True))


def by_day(spend: Sequence[DaySpend], *, first: date, last: date) -> Chart:
    """A column for every day from `first` to `last`, spent or not."""
    names = _names(spend)
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    amounts = {day: [0] * len(names) for day in days}
    for one in spend:
        amounts[one.day][_place(names, one.model)] += one.amount_nano
    top = _top(max((sum(part for part in parts if part > 0) for parts in amounts.values()), default=0))
    return Chart(
        names=names,
        totals_nano=[sum(parts[n] for parts in amounts.values()) for n in range(len(names))],
        columns=[_column(n, day, amounts[day], top, len(days)) for n, day in enumerate(days)],
        lines=[Line(TOP + HEIGHT - HEIGHT * n / 4, top * n // 4) for n in range(0, 5, 2)],
        total_nano=sum(map(sum, amounts.values())),
    )


def _names(spend: Sequence[DaySpend]) -> list[str]:
    totals: dict[str, int] = {}
    for one in spend:
        totals[one.model] = totals.get(one.model, 0) + one.amount_nano
    ranked = sorted(totals, key=lambda model: (-totals[model], model))
    named = [model or CORRECTIONS for model in ranked]
    return named if len(named) <= SERIES else [*named[: SERIES - 1], OTHERS]


def _place(names: Sequence[str], model: str) -> int:
    name = model or CORRECTIONS
    return names.index(name) if name in names else len(names) - 1


def _column(n: int, day: date, amounts_nano: list[int], top: int, days: int) -> Column:
    pieces, ground = [], float(TOP + HEIGHT)
    for series, amount in enumerate(amounts_nano, 1):
        if amount > 0:
            height = HEIGHT * amount / top
            ground -= height
            pieces.append(Piece(f"{ground:.2f}", f"{height:.2f}", series))
    width = 100 / days
    return Column(
        day=day,
        x=f"{(n + 0.12) * width:.3f}%",
        width=f"{0.76 * width:.3f}%",
        middle=f"{(n + 0.5) * width:.3f}%",
        pieces=pieces,
        amounts_nano=amounts_nano,
        total_nano=sum(amounts_nano),
        is_labelled=n % 7 == 0,
    )


def _top(nano: int) -> int:
    """The next round amount: 1, 2, 4, 6 or 8 times a power of ten, so that its halves are short too."""
    power: int = 10 ** max(len(str(nano)) - 1, 1)
    return next(power * n for n in (1, 2, 4, 6, 8, 10) if nano <= power * n)
