from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants.webhooks import endpoints


class Command(commands.OperatorCommand):
    help = "Gives a webhook endpoint a new secret, which is shown now and never again; for a while both sign."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("endpoint", metavar="ID")
        parser.add_argument(
            "--overlap-hours",
            type=float,
            default=24.0,
            metavar="N",
            help="how long the old one signs as well (default: 24)",
        )

    def perform(self, **options: Any) -> dict[str, Any]:
        endpoint = endpoints.find(options["endpoint"])
        secret = endpoints.rotate(endpoint, overlap=endpoints.hours(options["overlap_hours"]))
        return {**endpoints.as_json(endpoint), "secret": secret}
