from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import lookup
from usage import credit


class Command(commands.OperatorCommand):
    help = "Shows prepaid balances; of one tenant also his grants, in the order in which they burn."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", metavar="T", help="name or id")

    def perform(self, **options: Any) -> dict[str, Any]:
        if options["tenant"] is None:
            return {"tenants": credit.balances()}
        return credit.account(tenant_id=lookup.tenant(options["tenant"]).pk)

    def text(self, result: dict[str, Any]) -> str:
        if "tenants" in result:
            lines = [f"{it['left_usd']:>20} USD left  {it['name']}" for it in result["tenants"]]
            return "\n".join(lines) or "No tenant is prepaid."
        if result["balance"] is None:
            return "The tenant is not prepaid."
        lines = [
            f"{it['order']:>3}. {it['left_usd']} of {it['amount_usd']} USD {it['category']}, priority {it['priority']}, "
            f"expires {it['expires_at'] or 'never'}  {it['grant']}"
            for it in result["grants"]
        ]
        return "\n".join([f"{result['balance']['available_usd']} USD can be spent now.", *lines])
