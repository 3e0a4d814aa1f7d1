from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import onboarding


class Command(commands.OperatorCommand):
    help = "Creates a tenant with its environments dev, staging, prod and sandbox; repeated, shows what is there."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", metavar="NAME")

    def perform(self, **options: Any) -> dict[str, Any]:
        tenant, created = onboarding.create_tenant(name=commands.name(options["name"], "The tenant's name", most=100))
        return {
            "tenant": str(tenant.pk),
            "name": tenant.name,
            "created": created,
            "environments": onboarding.environment_ids(tenant),
        }

    def text(self, result: dict[str, Any]) -> str:
        lines = [f"  {name:<8} {pk}" for name, pk in result["environments"].items()]
        word = "created" if result["created"] else "was there already"
        return "\n".join([f"Tenant {result['name']} {word}: {result['tenant']}", *lines])
