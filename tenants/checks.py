"""What `manage.py migrate` and `manage.py check` refuse: settings of this app that make no sense."""

from typing import Any

from django.core import checks

from tenants import rate_limits
from tenants.models import Environment


@checks.register()
def the_limits_of_new_environments_can_be_read(**_: Any) -> list[checks.CheckMessage]:
    """Otherwise the next tenant could not be created."""
    found: list[checks.CheckMessage] = []
    for kind in Environment.Kind.values:
        try:
            rate_limits.defaults(kind)
        except rate_limits.LimitRefused as error:
            found.append(checks.Error(error.message, id="tenants.E001"))
    return found
