from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import lookup, suspension
from tenants.models import Suspendable


class Command(commands.OperatorCommand):
    help = "Stops a tenant, an environment or a key within a second, on every process; `resume` lets it go on."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="T", help="name or id")
        parser.add_argument("--environment", metavar="E", help="name or id")
        parser.add_argument("--key", metavar="ID", help="id or public id")
        parser.add_argument("--reason", required=True, metavar="TEXT", help="kept until it is resumed")

    def perform(self, **options: Any) -> dict[str, Any]:
        what = lookup.narrowest(options["tenant"], options["environment"], options["key"])
        suspension.suspend(what, by=Suspendable.Hand.OPERATOR, reason=options["reason"])
        return suspension.as_json(what)

    def text(self, result: dict[str, Any]) -> str:
        return f"The {result['scope']} {result['name']} is suspended since {result['suspended_at']}: {result['reason']}"
