from argparse import ArgumentParser
from typing import Any

from django.utils import timezone

from aiplatform.lib import commands
from tenants import lookup
from usage import standings


class Command(commands.OperatorCommand):
    help = "Lists a tenant's caps in their running periods; without a tenant those of the platform."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", metavar="T", help="name or id")
        parser.add_argument("--end-user", metavar="U", help="only what binds his calls, with his own figures")

    def perform(self, **options: Any) -> dict[str, Any]:
        tenant = lookup.tenant(options["tenant"]) if options["tenant"] is not None else None
        found = standings.standings(
            tenant_id=tenant.pk if tenant else None, now=timezone.now(), end_user=options["end_user"]
        )  # fmt: skip
        return {"tenant": tenant and str(tenant.pk), "caps": [it.as_json() for it in found]}

    def text(self, result: dict[str, Any]) -> str:
        return "\n".join(map(standings.in_words, result["caps"])) or "There are no caps."
