from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import lookup, routes
from tenants.models import Route


class Command(commands.OperatorCommand):
    help = "Lists routes: the platform's, and of tenants and environments."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", metavar="T", help="name or id; only its own")

    def perform(self, **options: Any) -> dict[str, Any]:
        found = Route.objects.select_related("tenant", "environment").order_by("alias", "tenant__name", "pk")
        if options["tenant"]:
            found = found.filter(tenant=lookup.tenant(options["tenant"]))
        return {"routes": [routes.as_json(one) for one in found]}

    def text(self, result: dict[str, Any]) -> str:
        lines = [
            f"{one['route']} of {' / '.join(filter(None, (one['tenant'], one['environment']))) or 'everybody'}: "
            f"{routes.told(one['steps'])}"
            for one in result["routes"]
        ]
        return "\n".join(lines) or "There are no routes."
