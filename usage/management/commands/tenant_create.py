from argparse import ArgumentParser
from typing import Any

from django.utils import timezone

from aiplatform.lib import commands
from tenants.onboarding import environment_ids
from usage import onboarding, standings


class Command(commands.OperatorCommand):
    help = "Creates a tenant with its four environments and low caps; repeated, shows what is there."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", metavar="NAME")

    def perform(self, **options: Any) -> dict[str, Any]:
        tenant, created = onboarding.open_tenant(name=commands.name(options["name"], "The tenant's name", most=100))
        return {
            "tenant": str(tenant.pk),
            "name": tenant.name,
            "created": created,
            "environments": environment_ids(tenant),
            "caps": [it.as_json() for it in standings.standings(tenant_id=tenant.pk, now=timezone.now())],
        }

    def text(self, result: dict[str, Any]) -> str:
        lines = [f"  {name:<8} {pk}" for name, pk in result["environments"].items()]
        word = "created" if result["created"] else "was there already"
        lines += [
            f"  cap {it['cap']}: {it['limit_usd']} USD per {it['period']} on {it['environment'] or 'the tenant'}"
            for it in result["caps"]
        ]
        return "\n".join([f"Tenant {result['name']} {word}: {result['tenant']}", *lines])
