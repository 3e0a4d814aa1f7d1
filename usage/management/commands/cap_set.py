from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import lookup
from usage import caps, standings
from usage.models import SpendingCap


class Command(commands.OperatorCommand):
    help = "Sets a spending cap on the platform, a tenant, an environment, a key or end users; it counts its running period."

    def add_arguments(self, parser: ArgumentParser) -> None:
        whose = parser.add_mutually_exclusive_group(required=True)
        whose.add_argument("--tenant", metavar="T", help="name or id")
        whose.add_argument("--platform", action="store_true", help="all tenants together, in UTC")
        parser.add_argument("--environment", metavar="E", help="name or id")
        parser.add_argument("--key", metavar="ID", help="id or public id")
        users = parser.add_mutually_exclusive_group()
        users.add_argument("--end-user", default="", metavar="U", help="as the calls name him")
        users.add_argument("--each-end-user", action="store_true", help="each end user by himself")
        parser.add_argument("--period", required=True, choices=SpendingCap.Period.values)
        parser.add_argument("--usd", required=True, metavar="10.00", help="at most nine decimals; 0 refuses what costs")
        parser.add_argument("--mode", choices=caps.MODES, default=SpendingCap.Mode.ENFORCE, help="default: enforce")
        parser.add_argument("--thresholds", metavar="50,80,100", help="percents at which people are told; empty: none")

    def perform(self, **options: Any) -> dict[str, Any]:
        limit_nano = caps.parse_usd(options["usd"])
        thresholds = None if options["thresholds"] is None else caps.parse_thresholds(options["thresholds"])
        tenant, environment, api_key = (
            (None, None, None)
            if options["platform"]
            else lookup.scope(options["tenant"], options["environment"], options["key"])
        )
        cap_id = caps.set_cap(
            tenant=tenant,
            environment=environment,
            api_key=api_key,
            end_user=SpendingCap.EACH_END_USER if options["each_end_user"] else options["end_user"],
            period=options["period"],
            mode=options["mode"],
            limit_nano=limit_nano,
            thresholds=thresholds,
        )
        return {**standings.standing_of(cap_id), "tenant": tenant and str(tenant.pk)}

    def text(self, result: dict[str, Any]) -> str:
        return standings.in_words(result)
