from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import lookup, purges


class Command(commands.OperatorCommand):
    help = (
        "Takes back the answers of an environment that would be given again: all, those of a model, or those of a key."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="T", help="name or id")
        parser.add_argument("--environment", required=True, metavar="E", help="name or id")
        parser.add_argument("--model", default="", metavar="M", help="as it was asked for, or as it was served")
        parser.add_argument("--key", metavar="ID", help="id or public id of the key whose calls they were made for")

    def perform(self, **options: Any) -> dict[str, Any]:
        tenant = lookup.tenant(options["tenant"])
        environment = lookup.environment(tenant, options["environment"])
        key = lookup.api_key(options["key"], owner=tenant) if options["key"] else None
        return purges.as_json(purges.purge(environment=environment, model=options["model"][:200], api_key=key))

    def text(self, result: dict[str, Any]) -> str:
        whose = ", ".join(f"{name} {result[name]}" for name in ("model", "key") if result[name]) or "all of them"
        return f"Answers made until {result['at']} are not given again: {whose}."
