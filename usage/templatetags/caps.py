"""Where a cap's figures come from."""

from urllib.parse import urlencode

from django import template

from usage import filters
from usage.reports import Cap

register = template.Library()


@register.filter
def calls_query(cap: Cap) -> str:
    """The query string of the list of calls that count in the cap."""
    asked = {
        "environment": "" if cap.key_id else cap.environment,
        "key": cap.key_id,
        "end_user": cap.end_user,
        "when": filters.when(cap.period, cap.starts_at),
    }
    return urlencode({name: value for name, value in asked.items() if value})
