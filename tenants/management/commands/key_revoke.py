from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import keys, lookup


class Command(commands.OperatorCommand):
    help = "Revokes an API key, on every process within a second; repeated, changes nothing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("id", metavar="ID", help="id or public id, never the key itself")

    def perform(self, **options: Any) -> dict[str, Any]:
        key = keys.revoke(lookup.api_key(options["id"]))
        if not key.revoked_at:  # the row went between the two statements
            raise lookup.NotFound
        return {"id": str(key.pk), "prefix": key.prefix, "revoked_at": key.revoked_at.isoformat()}

    def text(self, result: dict[str, Any]) -> str:
        return f"Key {result['prefix']} is revoked since {result['revoked_at']}."
