from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from usage import price_drafts


class Command(commands.OperatorCommand):
    help = "Puts drafts of prices in force."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("draft", metavar="DRAFT", type=int, nargs="+")
        parser.add_argument("--by", required=True, metavar="EMAIL")
        parser.add_argument(
            "--from", dest="begins", metavar="DATE", help="2027-01-31 or 2027-01-31T12:00Z; default: now"
        )
        parser.add_argument("--reason", default="", metavar="TEXT")

    def perform(self, **options: Any) -> dict[str, Any]:
        by = commands.name(options["by"], "--by", most=200)
        begins = commands.later(options["begins"])
        accepted = [
            price_drafts.approve(draft, by=by, valid_from=begins, reason=options["reason"])
            for draft in options["draft"]
        ]
        return {"prices": {f"{draft.provider}/{draft.model}": draft.price_id for draft in accepted}}

    def text(self, result: dict[str, Any]) -> str:
        return "\n".join(f"Price {price} of {name} is approved." for name, price in result["prices"].items())
