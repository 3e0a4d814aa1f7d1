"""How figures are written: money exactly or cut short but never up, times in the tenant's zone, durations, tokens."""

from datetime import UTC, datetime, timedelta

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from aiplatform.lib import money

register = template.Library()

DOLLAR = money.NANO
MINUS = "\N{MINUS SIGN}"
TEN_MILLISECONDS, MINUTE = 0.01, 60


@register.filter
def usd_text(nano: int) -> str:
    """All nine decimals as plain text, for titles and labels: `$1,284.071302150`."""
    return _signed(nano, *_parts(nano))


@register.filter
def usd(nano: int) -> SafeString:
    """All nine decimals, the last ones set small so that the eye finds the dollars."""
    whole, decimals = _parts(nano)
    coarse = _coarse(nano)
    return format_html(
        '<span class="usd">{}<span class="fine">{}</span></span>',
        _signed(nano, whole, decimals[:coarse]),
        decimals[coarse:],
    )


@register.filter
def usd_lean(nano: int) -> SafeString:
    """Exact like `usd`, but without the zeros that say nothing: `$673.75`."""
    whole, decimals = _parts(nano)
    decimals = decimals.rstrip("0").ljust(2, "0")
    coarse = _coarse(nano)
    return format_html(
        '<span class="usd">{}<span class="fine">{}</span></span>',
        _signed(nano, whole, decimals[:coarse]),
        decimals[coarse:],
    )


@register.filter
def usd_short(nano: int) -> SafeString:
    """Cut, never rounded up: to cents, or below a dollar to the third digit that counts; the title has it all."""
    return format_html('<data value="{}" title="{}">{}</data>', money.usd(nano), usd_text(nano), usd_brief(nano))


@register.filter
def usd_brief(nano: int) -> str:
    """The words of `usd_short` alone; a cut never turns something into nothing, or a part into the whole."""
    whole, decimals = _parts(nano)
    keep = 2
    if abs(nano) < DOLLAR and nano:
        keep = min(max(len(decimals) - len(decimals.lstrip("0")) + 3, 2), 9)
        decimals = decimals[:keep].rstrip("0").ljust(2, "0")
    return _signed(nano, whole, decimals[:keep] if decimals.strip("0") else "")


@register.filter
def usd_plain(nano: int) -> str:
    """All nine decimals without a sign of currency, for columns that are headed by one."""
    return exact(money.usd(nano))


@register.filter
def exact(usd: str) -> str:
    """An exact amount in digits, set for reading: `-0.0000000005`, `1,284.071302150`."""
    whole, _, decimals = usd.lstrip("-").partition(".")
    return f"{MINUS if usd.startswith('-') else ''}{int(whole):,}.{decimals}"


@register.filter
def rate(usd: str) -> str:
    """A price with as many decimals as it has, at least two."""
    whole, _, decimals = usd.partition(".")
    return f"{int(whole):,}.{decimals.ljust(2, '0')}"


@register.filter
def moment(value: datetime | None, form: str = "j M H:i:s") -> SafeString | str:
    """A time in the tenant's zone, with UTC in its title."""
    if value is None:
        return ""
    local = timezone.localtime(value)
    form = form.replace("v", f"{value.microsecond // 1000:03d}")  # milliseconds, which Django's forms do not have
    return format_html(
        '<time datetime="{}" title="{} UTC">{}</time>',
        value.astimezone(UTC).isoformat(),
        value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
        template.defaultfilters.date(local, form),
    )


@register.filter
def duration(value: timedelta | None) -> str:
    """`412 ms`, `1.31 s`, `2 min 5 s`."""
    if value is None:
        return ""
    seconds = value.total_seconds()
    if seconds < TEN_MILLISECONDS:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < MINUTE:
        return f"{seconds:.2f} s"
    return f"{int(seconds // 60):,} min {int(seconds % MINUTE)} s"


@register.filter
def percent(share: float) -> str:
    """A share as the geometry of a bar: something never looks like nothing."""
    return f"{max(share * 100, 0.6 if share > 0 else 0):.2f}%"


def _parts(nano: int) -> tuple[str, str]:
    whole, decimals = divmod(abs(nano), DOLLAR)
    return f"{whole:,}", f"{decimals:09d}"


def _signed(nano: int, whole: str, decimals: str) -> str:
    return f"{MINUS if nano < 0 else ''}${whole}{'.' if decimals else ''}{decimals}"


def _coarse(nano: int) -> int:
    size = abs(nano)
    return 2 if size >= 100 * DOLLAR else 4 if size >= DOLLAR else 6
