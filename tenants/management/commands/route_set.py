from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from aiplatform.lib import commands
from tenants import lookup, routes
from tenants.models import Environment, Tenant


class Command(commands.OperatorCommand):
    help = "Says what a name means: a chain of models at providers, tried in order, each step with weighted siblings."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", metavar="NAME", help="what callers write as their model")
        add_scope(parser)
        parser.add_argument(
            "--step", action="append", required=True, metavar="MODEL[@PROVIDER][=WEIGHT],…",
            help="without a provider: every one that serves the model; repeat for the steps that follow",
        )  # fmt: skip

    def perform(self, **options: Any) -> dict[str, Any]:
        tenant, environment = scope(options)
        route, change = routes.set_route(
            tenant=tenant, environment=environment, alias=options["name"], steps=routes.read_steps(options["step"])
        )
        return {"change": change, **routes.as_json(route)}

    def text(self, result: dict[str, Any]) -> str:
        return f"Route {result['route']} {result['change']}: {routes.told(result['steps'])}"


def add_scope(parser: ArgumentParser) -> None:
    parser.add_argument("--tenant", metavar="T", help="name or id; without one the route is everybody's")
    parser.add_argument("--environment", metavar="E", help="name or id, of the tenant")


def scope(options: dict[str, Any]) -> tuple[Tenant | None, Environment | None]:
    """Raises NotFound or CommandError."""
    if options["environment"] and not options["tenant"]:
        raise CommandError("--environment needs --tenant.")
    tenant = lookup.tenant(options["tenant"]) if options["tenant"] else None
    return tenant, lookup.environment(tenant, options["environment"]) if tenant and options["environment"] else None
