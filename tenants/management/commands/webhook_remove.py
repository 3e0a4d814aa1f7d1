from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants.webhooks import endpoints


class Command(commands.OperatorCommand):
    help = "Removes a webhook endpoint with its deliveries."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("endpoint", metavar="ID")

    def perform(self, **options: Any) -> dict[str, Any]:
        endpoint = endpoints.find(options["endpoint"])
        shown = endpoints.as_json(endpoint)
        endpoints.remove(endpoint)
        return {"removed": shown}

    def text(self, result: dict[str, Any]) -> str:
        return f"removed {result['removed']['url']}"
