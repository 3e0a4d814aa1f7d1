from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import rate_limits


class Command(commands.OperatorCommand):
    help = "Removes a rate limit, on every process within a second; others on the same calls stay."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("limit", metavar="LIMIT", help="as limit_list names it")

    def perform(self, **options: Any) -> dict[str, Any]:
        limit = rate_limits.find(options["limit"])
        removed = limit.pk
        rate_limits.remove(limit)
        return {"limit": removed, "removed": True}

    def text(self, result: dict[str, Any]) -> str:
        return f"Limit {result['limit']} is removed."
