from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from usage import price_drafts


class Command(commands.OperatorCommand):
    help = "Closes a draft of a price; the same figures do not come again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("draft", metavar="DRAFT", type=int)
        parser.add_argument("--by", required=True, metavar="EMAIL")
        parser.add_argument("--reason", required=True, metavar="TEXT")

    def perform(self, **options: Any) -> dict[str, Any]:
        by = commands.name(options["by"], "--by", most=200)
        draft = price_drafts.reject(
            options["draft"], by=by, reason=commands.name(options["reason"], "--reason", most=500)
        )
        return {"draft": draft.pk, "provider": draft.provider, "model": draft.model, "decision": draft.decision}

    def text(self, result: dict[str, Any]) -> str:
        return f"Draft {result['draft']} of {result['provider']} {result['model']} is rejected."
