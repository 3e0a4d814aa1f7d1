from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from usage import receipt_text, receipts


class Command(commands.OperatorCommand):
    help = "Shows the receipt and the whole timeline of one call."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("id", metavar="ID", help="call_… as in the header x-call-id, or the bare UUID")

    def perform(self, **options: Any) -> dict[str, Any]:
        return receipts.receipt(options["id"])

    def text(self, result: dict[str, Any]) -> str:
        return receipt_text.text(result)
