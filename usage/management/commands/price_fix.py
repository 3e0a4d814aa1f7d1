from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from aiplatform.lib import commands, money
from usage import price_fix, pricebook


class Command(commands.OperatorCommand):
    help = (
        "Rates the calls of a span again by corrected figures, and books the differences with a reason; edits nothing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("provider", metavar="PROVIDER")
        parser.add_argument("model", metavar="MODEL")
        parser.add_argument(
            "--from", dest="begins", required=True, metavar="DATE", help="2027-01-31 or 2027-01-31T12:00Z"
        )
        parser.add_argument("--to", dest="ends", required=True, metavar="DATE", help="calls admitted before it")
        parser.add_argument(
            "--component", action="append", required=True, metavar="METER[@TIER][/VARIANT]=USD[/PER]",
            help="what should have been, instead of all tiers of this meter and variant",
        )  # fmt: skip
        parser.add_argument("--reason", required=True, metavar="TEXT", help="stands on receipts")
        parser.add_argument("--by", required=True, metavar="EMAIL")
        parser.add_argument(
            "--charge-tenant", action="store_true", help="what was charged too little, as far as caps afford"
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="tell what would change; the house's part as charged"
        )

    def perform(self, **options: Any) -> dict[str, Any]:
        fixed = price_fix.fix(
            provider=options["provider"],
            model=options["model"],
            span=(commands.moment(options["begins"], "--from"), commands.moment(options["ends"], "--to")),
            parts=[pricebook.parse_component(text) for text in options["component"]],
            reason=commands.name(options["reason"], "--reason", most=200),
            by=commands.name(options["by"], "--by", most=200),
            charge_tenant=options["charge_tenant"],
            dry_run=options["dry_run"],
        )
        usd = {f"{key[:-5]}_usd": money.usd(value) for key, value in asdict(fixed).items() if key.endswith("_nano")}
        counts = {key: value for key, value in asdict(fixed).items() if not key.endswith("_nano")}
        return {**counts, **usd, "dry_run": options["dry_run"]}
