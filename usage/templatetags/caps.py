"""Where a cap's figures come from."""

from urllib.parse import urlencode

from django import template

from usage import filters
from usage.models import SpendingCap
from usage.standings import Standing

register = template.Library()


@register.filter
def calls_query(cap: Standing) -> str:
    """The query string of the list of calls that count in the cap."""
    asked = {
        "environment": "" if cap.key_public_id else cap.environment,
        "key": cap.key_public_id,
        "end_user": cap.fullest_end_user or cap.end_user.removesuffix(SpendingCap.EACH_END_USER),
        "when": filters.when(cap.period, cap.starts_at),
    }
    return urlencode({name: value for name, value in asked.items() if value})
