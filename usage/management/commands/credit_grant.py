from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import lookup
from usage import caps, credit
from usage.models import CreditGrant


class Command(commands.OperatorCommand):
    help = "Grants a tenant prepaid credit; from the first grant on his balance is a cap."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="T", help="name or id")
        parser.add_argument("--usd", required=True, metavar="100.00")
        parser.add_argument("--category", required=True, choices=CreditGrant.Category.values)
        parser.add_argument(
            "--priority", type=int, default=100, metavar="N", help="the lowest burns first (default 100)"
        )
        parser.add_argument("--expires", metavar="DATE", help="+30d, 2027-01-31 or 2027-01-31T12:00Z; without: never")
        parser.add_argument("--note", default="", metavar="TEXT")

    def perform(self, **options: Any) -> dict[str, Any]:
        tenant = lookup.tenant(options["tenant"])
        granted = credit.grant(
            tenant=tenant,
            amount_nano=caps.parse_usd(options["usd"]),
            category=options["category"],
            priority=options["priority"],
            expires_at=caps.parse_until(options["expires"]) if options["expires"] else None,
            note=options["note"],
        )
        return {"grant": str(granted.pk), **credit.account(tenant_id=tenant.pk)}

    def text(self, result: dict[str, Any]) -> str:
        return f"Grant {result['grant']}; {result['balance']['available_usd']} USD can be spent now."
