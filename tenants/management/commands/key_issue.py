from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import keys, lookup
from tenants.models import ApiKey

BINDINGS = {"model": "models", "endpoint": "endpoints", "origin": "origins", "network": "networks"}
_HELP = {
    "model": ("NAME", "a model that it may ask for, or the beginning of several, like gpt-5*"),
    "endpoint": ("NAME", "an endpoint that it may call, like chat or messages"),
    "origin": ("URL", "a page that may use it in a browser, like https://app.example.com; nobody else may then"),
    "network": ("CIDR", "addresses that it may be used from, like 10.1.0.0/16 or 192.0.2.7"),
}


def add_bindings(parser: ArgumentParser) -> None:
    """The options that say what a key is bound to."""
    for name, (metavar, what) in _HELP.items():
        parser.add_argument(f"--{name}", action="append", default=[], metavar=metavar, help=f"{what}; may be repeated")


class Command(commands.OperatorCommand):
    help = "Issues an API key; its text is shown now and never again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="T", help="name or id")
        parser.add_argument("--environment", required=True, metavar="E", help="name or id")
        parser.add_argument("--name", default="", metavar="N", help="what the key is for")
        parser.add_argument(
            "--scope",
            action="append",
            choices=ApiKey.Scope.values,
            help="may be repeated (default: calls and read; with --origin calls alone, as pages show their keys)",
        )
        parser.add_argument("--expires", metavar="DATE", help="2027-01-31 (from midnight UTC on) or 2027-01-31T12:00Z")
        add_bindings(parser)

    def perform(self, **options: Any) -> dict[str, Any]:
        tenant = lookup.tenant(options["tenant"])
        key, text = keys.issue(
            environment=lookup.environment(tenant, options["environment"]),
            name=commands.name(options["name"], "--name", most=100, empty=True),
            scopes=options["scope"] or _scopes(is_public=bool(options["origin"])),
            expires_at=commands.moment(options["expires"], "--expires") if options["expires"] else None,
            **{many: options[one] for one, many in BINDINGS.items()},
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
            **keys.bindings_json(key),
        }

    def text(self, result: dict[str, Any]) -> str:
        return f"{result['key']}\n\nKeep it now: it is not stored and cannot be shown again. Its id: {result['id']}"


def _scopes(*, is_public: bool) -> list[str]:
    return [ApiKey.Scope.CALLS] if is_public else [ApiKey.Scope.CALLS, ApiKey.Scope.READ]
