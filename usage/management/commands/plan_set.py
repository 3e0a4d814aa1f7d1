from argparse import ArgumentParser, BooleanOptionalAction
from typing import Any

from aiplatform.lib import commands
from usage import plans


class Command(commands.OperatorCommand):
    help = "Makes or changes a plan: its markup on list prices, and who pays for tries that were repeated."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", metavar="NAME")
        parser.add_argument(
            "--markup-bps",
            type=int,
            metavar="N",
            help="hundredths of a percent; less than 0 is a discount, -10000 is free",
        )
        parser.add_argument(
            "--charges-retries",
            action=BooleanOptionalAction,
            help="the tenant pays what failed tries cost, within the hold",
        )
        parser.add_argument(
            "--own-key-bps",
            type=int,
            metavar="N",
            help="what a call on the tenant's own credential is charged: hundredths of a percent of its list price",
        )
        parser.add_argument(
            "--cache-hit-bps",
            type=int,
            metavar="N",
            help="what an answer that is given again is charged: hundredths of a percent of what it saved",
        )

    def perform(self, **options: Any) -> dict[str, Any]:
        plan, created = plans.set_plan(
            name=commands.name(options["name"], "NAME", most=100),
            markup_bps=options["markup_bps"],
            charges_retries=options["charges_retries"],
            own_key_bps=options["own_key_bps"],
            cache_hit_bps=options["cache_hit_bps"],
        )
        return {
            "plan": plan.name,
            "created": created,
            "charges_retries": plan.charges_retries,
            "own_key_bps": plan.own_key_bps,
            "cache_hit_bps": plan.cache_hit_bps,
        }
