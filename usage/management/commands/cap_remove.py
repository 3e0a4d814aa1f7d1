from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from usage import caps


class Command(commands.OperatorCommand):
    help = "Removes a cap with its periods and notices; what was charged stays charged."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("cap", metavar="CAP", help="as cap_list names it")

    def perform(self, **options: Any) -> dict[str, Any]:
        cap = caps.find(options["cap"])
        removed = cap.pk
        caps.remove_cap(cap)
        return {"cap": removed, "removed": True}

    def text(self, result: dict[str, Any]) -> str:
        return f"Cap {result['cap']} is removed."
