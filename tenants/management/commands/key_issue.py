from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import keys, lookup
from tenants.models import ApiKey


class Command(commands.OperatorCommand):
    help = "Issues an API key; its text is shown now and never again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="T", help="name or id")
        parser.add_argument("--environment", required=True, metavar="E", help="name or id")
        parser.add_argument("--name", default="", metavar="N", help="what the key is for")
        parser.add_argument(
            "--scope", action="append", choices=ApiKey.Scope.values, help="may be repeated (default: calls and read)"
        )
        parser.add_argument("--expires", metavar="DATE", help="2027-01-31 (from midnight UTC on) or 2027-01-31T12:00Z")

    def perform(self, **options: Any) -> dict[str, Any]:
        tenant = lookup.tenant(options["tenant"])
        key, text = keys.issue(
            environment=lookup.environment(tenant, options["environment"]),
            name=commands.name(options["name"], "--name", most=100, empty=True),
            scopes=options["scope"] or (ApiKey.Scope.CALLS, ApiKey.Scope.READ),
            expires_at=commands.moment(options["expires"], "--expires") if options["expires"] else None,
        )
        return {
            "key": text,
            "id": str(key.pk),
            "public_id": key.public_id,
            "prefix": key.prefix,
            "tenant": str(key.tenant_id),
            "environment": str(key.environment_id),
            "name": key.name,
            "scopes": key.scopes,
            "expires_at": key.expires_at and key.expires_at.isoformat(),
        }

    def text(self, result: dict[str, Any]) -> str:
        return f"{result['key']}\n\nKeep it now: it is not stored and cannot be shown again. Its id: {result['id']}"
