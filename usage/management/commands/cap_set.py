from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from aiplatform.lib import commands
from tenants import lookup
from usage import caps
from usage.models import SpendingCap


class Command(commands.OperatorCommand):
    help = "Sets a spending cap of a tenant, an environment, a key or an end user; a new one counts its running period."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="T", help="name or id")
        parser.add_argument("--environment", metavar="E", help="name or id")
        parser.add_argument("--key", metavar="ID", help="id or public id")
        parser.add_argument("--end-user", default="", metavar="U", help="as the calls name him")
        parser.add_argument("--period", required=True, choices=SpendingCap.Period.values)
        parser.add_argument("--usd", required=True, metavar="10.00", help="at most nine decimals; 0 refuses what costs")

    def perform(self, **options: Any) -> dict[str, Any]:
        limit_nano = caps.parse_usd(options["usd"])
        tenant, environment, api_key = lookup.scope(options["tenant"], options["environment"], options["key"])
        cap_id = caps.set_cap(
            tenant=tenant,
            environment=environment,
            api_key=api_key,
            end_user=options["end_user"],
            period=options["period"],
            limit_nano=limit_nano,
        )
        for standing in caps.standings(tenant_id=tenant.pk):
            if standing.cap_id == cap_id:
                return {**standing.as_json(), "tenant": str(tenant.pk)}
        raise CommandError(f"The cap {cap_id} was removed while it was read.")

    def text(self, result: dict[str, Any]) -> str:
        scope = result["scope"].replace("_", " ")
        return (
            f"Cap {result['cap']} on this {scope}: {result['limit_usd']} USD per {result['period']}; "
            f"{result['spent_usd']} spent, {result['held_usd']} held, {result['left_usd']} left."
        )
