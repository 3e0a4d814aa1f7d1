from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import CommandError

from aiplatform.lib import commands
from tenants import lookup, rate_limits
from tenants.models import RateLimit

NO_LIMIT = rate_limits.NO_LIMIT
OPTIONS = {
    "rpm": "calls a minute",
    "tpm": "tokens a minute",
    "concurrency": "calls at once",
    "rpm_burst": "calls at once where none came for a while (default: a minute's worth)",
    "tpm_burst": "tokens at once, likewise",
}


class Command(commands.OperatorCommand):
    help = "Sets rate limits of a tenant, an environment, a key or their end users; figures not given stay as they are."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="T", help="name or id")
        parser.add_argument("--environment", metavar="E", help="name or id")
        parser.add_argument("--key", metavar="ID", help="id or public id")
        parser.add_argument(
            "--end-user", default="", metavar="U", help="one end user's share of the scope; * is each by himself"
        )
        parser.add_argument("--shadow", action="store_true", help="refuses nothing, and counts what it would have")
        for name, what in OPTIONS.items():
            parser.add_argument(
                f"--{name.replace('_', '-')}", type=figure, metavar="N", help=f"{what}; `none` lifts the limit"
            )

    def perform(self, **options: Any) -> dict[str, Any]:
        given = {name: options[name] for name in OPTIONS if options[name] is not None}
        if not given:
            raise CommandError("Nothing to set; give at least one of --rpm, --tpm, --concurrency.")
        tenant, environment, api_key = lookup.scope(options["tenant"], options["environment"], options["key"])
        mode = RateLimit.Mode.SHADOW if options["shadow"] else RateLimit.Mode.ENFORCE
        limit, created = rate_limits.set_limit(
            tenant=tenant,
            environment=environment,
            api_key=api_key,
            end_user=options["end_user"],
            mode=mode,
            figures={name: None if value == NO_LIMIT else value for name, value in given.items()},
        )
        return {
            "limit": limit and limit.pk,
            "created": created,
            "tenant": str(tenant.pk),
            "environment": environment and str(environment.pk),
            "key": api_key and str(api_key.pk),
            "end_user": options["end_user"],
            "mode": mode.value,
            **{name: limit and getattr(limit, name) for name in rate_limits.FIGURES},
        }

    def text(self, result: dict[str, Any]) -> str:
        if result["limit"] is None:
            return "Nothing is limited there any more."
        figures = ", ".join(
            f"{name} {'unlimited' if result[name] is None else result[name]}" for name in rate_limits.RATES
        )
        bursts = "".join(f", {name} {result[name]}" for name in rate_limits.BURSTS if result[name] is not None)
        shadow = " (shadow: refuses nothing)" if result["mode"] == RateLimit.Mode.SHADOW else ""
        return f"Limit {result['limit']}: {figures}{bursts}{shadow}"


def figure(text: str) -> int | str:
    """A limit as operators type it, or NO_LIMIT; raises ArgumentTypeError."""
    try:
        return rate_limits.parse_figure(text) or NO_LIMIT
    except rate_limits.LimitRefused as error:
        raise ArgumentTypeError(error.message) from None
