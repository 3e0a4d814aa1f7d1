from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants.webhooks import outbox


class Command(commands.OperatorCommand):
    help = "Sends a delivery again, with the same webhook-id."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("delivery", metavar="ID", help="as `webhook_list --endpoint` shows it")

    def perform(self, **options: Any) -> dict[str, Any]:
        delivery = outbox.find(options["delivery"])
        outbox.resend(delivery)
        return outbox.as_json(delivery)
