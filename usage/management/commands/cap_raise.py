from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from usage import caps, standings


class Command(commands.OperatorCommand):
    help = "Raises a cap for a time; the raise before it ends, and 0 ends the raise now."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("cap", metavar="CAP", help="as cap_list names it")
        parser.add_argument("--usd", required=True, metavar="10.00", help="on top of its limit")
        parser.add_argument("--until", required=True, metavar="+4h", help="+4h, +2d, 2027-01-31 or 2027-01-31T12:00Z")

    def perform(self, **options: Any) -> dict[str, Any]:
        cap = caps.find(options["cap"])
        caps.raise_cap(cap, by_nano=caps.parse_usd(options["usd"]), until=caps.parse_until(options["until"]))
        return standings.standing_of(cap.pk)

    def text(self, result: dict[str, Any]) -> str:
        return standings.in_words(result)
