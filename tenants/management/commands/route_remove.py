from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import routes
from tenants.management.commands import route_set


class Command(commands.OperatorCommand):
    help = "Removes a route; calls that are held keep the chain they were held for."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", metavar="NAME")
        route_set.add_scope(parser)

    def perform(self, **options: Any) -> dict[str, Any]:
        tenant, environment = route_set.scope(options)
        routes.remove_route(tenant=tenant, environment=environment, alias=options["name"])
        return {
            "removed": options["name"],
            "tenant": tenant and tenant.name,
            "environment": environment and environment.name,
        }
