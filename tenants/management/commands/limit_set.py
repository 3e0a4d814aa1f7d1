from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import CommandError

from aiplatform.lib import commands
from tenants import lookup
from tenants.models import RateLimit

FIGURES = ("rpm", "tpm", "concurrency")
MOST = 10**12
NO_LIMIT = "none"


class Command(commands.OperatorCommand):
    help = "Sets rate limits of a tenant, an environment or a key; figures not given stay as they are."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="T", help="name or id")
        parser.add_argument("--environment", metavar="E", help="name or id")
        parser.add_argument("--key", metavar="ID", help="id or public id")
        for name, what in zip(FIGURES, ("calls a minute", "tokens a minute", "calls at once"), strict=True):
            parser.add_argument(f"--{name}", type=figure, metavar="N", help=f"{what}; `none` lifts the limit")

    def perform(self, **options: Any) -> dict[str, Any]:
        given = {name: options[name] for name in FIGURES if options[name] is not None}
        if not given:
            raise CommandError("Nothing to set; give at least one of --rpm, --tpm, --concurrency.")
        tenant, environment, api_key = lookup.scope(options["tenant"], options["environment"], options["key"])
        limit, created = RateLimit.objects.update_or_create(
            tenant=tenant,
            environment=environment,
            api_key=api_key,
            defaults={name: None if value == NO_LIMIT else value for name, value in given.items()},
        )
        return {
            "limit": limit.pk,
            "created": created,
            "tenant": str(tenant.pk),
            "environment": environment and str(environment.pk),
            "key": api_key and str(api_key.pk),
            **{name: getattr(limit, name) for name in FIGURES},
        }

    def text(self, result: dict[str, Any]) -> str:
        figures = ", ".join(f"{name} {'unlimited' if result[name] is None else result[name]}" for name in FIGURES)
        return f"Limit {result['limit']}: {figures}"


def figure(text: str) -> int | str:
    """A limit as operators type it; raises ArgumentTypeError."""
    if text == NO_LIMIT:
        return text
    if text.isascii() and text.isdecimal() and 1 <= int(text[:20]) <= MOST:
        return int(text)
    raise ArgumentTypeError(f"{text[:30]!r} is no whole number from 1 to {MOST}, nor the word {NO_LIMIT!r}")
