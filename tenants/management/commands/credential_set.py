from argparse import ArgumentParser, BooleanOptionalAction
from typing import Any

from aiplatform.lib import commands
from tenants import credentials, lookup
from tenants.management.commands import limit_set


class Command(commands.OperatorCommand):
    help = "Sets a credential of a provider: the platform's, or a tenant's own. Figures not given stay as they are."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("provider", metavar="PROVIDER")
        parser.add_argument("name", metavar="NAME")
        parser.add_argument("--tenant", metavar="T", help="name or id; its own, which its calls there then use alone")
        parser.add_argument("--key-env", metavar="VAR", help="the workers' environment variable that holds the secret")
        parser.add_argument("--weight", type=int, metavar="N", help="its share among the provider's credentials")
        parser.add_argument("--enabled", action=BooleanOptionalAction)
        for figure, what in zip(
            credentials.FIGURES, ("calls a minute", "tokens a minute", "calls at once"), strict=True
        ):
            parser.add_argument(
                f"--{figure}", type=limit_set.figure, metavar="N", help=f"{what}; `none` lifts the limit"
            )

    def perform(self, **options: Any) -> dict[str, Any]:
        changes = {
            name: None if options[name] == limit_set.NO_LIMIT else options[name]
            for name in ("weight", *credentials.FIGURES)
            if options[name] is not None
        }
        if options["enabled"] is not None:
            changes["is_enabled"] = options["enabled"]
        credential, created = credentials.set_credential(
            provider=lookup.provider(options["provider"]),
            tenant=lookup.tenant(options["tenant"]) if options["tenant"] else None,
            name=commands.name(options["name"], "NAME", most=60),
            key_env=options["key_env"],
            changes=changes,
        )
        return {"created": created, **credentials.as_json(credential)}
