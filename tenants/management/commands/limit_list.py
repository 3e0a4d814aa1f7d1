from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import lookup, rate_limits


class Command(commands.OperatorCommand):
    help = "Lists a tenant's rate limits, with what is left of each now and what shadow would have refused."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="T", help="name or id")

    def perform(self, **options: Any) -> dict[str, Any]:
        tenant = lookup.tenant(options["tenant"])
        found = rate_limits.listed(tenant=tenant)
        free = rate_limits.left(found)
        return {"tenant": str(tenant.pk), "limits": [rate_limits.as_json(it, free.get(it.pk)) for it in found]}

    def text(self, result: dict[str, Any]) -> str:
        return "\n".join(map(rate_limits.in_words, result["limits"])) or "There are no rate limits."
