from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import credentials, lookup


class Command(commands.OperatorCommand):
    help = "Removes a credential of a provider."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("provider", metavar="PROVIDER")
        parser.add_argument("name", metavar="NAME")
        parser.add_argument("--tenant", metavar="T", help="name or id, where it is a tenant's own")

    def perform(self, **options: Any) -> dict[str, Any]:
        provider = lookup.provider(options["provider"])
        tenant = lookup.tenant(options["tenant"]) if options["tenant"] else None
        credentials.remove_credential(provider=provider, tenant=tenant, name=options["name"])
        return {"removed": options["name"], "provider": provider.name, "tenant": tenant and tenant.name}
