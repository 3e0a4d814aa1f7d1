from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import lookup, near_matching


class Command(commands.OperatorCommand):
    help = "Lists a tenant's near matches with how their answers agreed, and what was embedded a day."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="T", help="name or id")
        parser.add_argument("--environment", metavar="E", help="name or id")

    def perform(self, **options: Any) -> dict[str, Any]:
        tenant = lookup.tenant(options["tenant"])
        environment = lookup.environment(tenant, options["environment"]) if options["environment"] else None
        return {"tenant": str(tenant.pk), **near_matching.shown(tenant=tenant, environment=environment)}

    def text(self, result: dict[str, Any]) -> str:
        rows = [near_matching.in_words(one) for one in result["near"]] or ["There are no near matches."]
        used = [
            f"{one['day']} {one['environment']}: {one['texts']} texts, {one['tokens']} tokens, {one['cpu_ms']:g} ms of CPU"
            for one in result["embedded"]
        ]
        return "\n".join([*rows, *used])
