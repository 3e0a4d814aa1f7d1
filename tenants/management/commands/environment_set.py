from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction
from typing import Any

from aiplatform.lib import commands
from tenants import environments, lookup
from tenants.models import Environment

MOST_SECONDS = 30 * 24 * 3600


class Command(commands.OperatorCommand):
    help = "Changes how an environment's calls are carried out; what is not given stays."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="T", help="name or id")
        parser.add_argument("--environment", required=True, metavar="E", help="name or id")
        parser.add_argument(
            "--prompt-cache",
            choices=Environment.PromptCache.values,
            help="auto: long beginnings that come back are marked for Anthropic's cache where that pays",
        )

        parser.add_argument(
            "--on-disconnect",
            choices=Environment.OnDisconnect.values,
            help="finish: a call whose caller goes is carried out; cancel: its stream is closed; drain: heard for its"
            " usage alone",
        )

        parser.add_argument(
            "--cache",
            choices=Environment.Cache.values,
            help="whether answers are given again: off, on_request (by Cache-Control: max-age), or on",
        )
        parser.add_argument(
            "--cache-ttl",
            type=seconds,
            metavar="SECONDS",
            help="how old an answer may be that is given again",
        )
        parser.add_argument(
            "--cache-normalises",
            action=BooleanOptionalAction,
            help="what a user says is the same question whatever its white space and case",
        )

    def perform(self, **options: Any) -> dict[str, Any]:
        environment = lookup.environment(lookup.tenant(options["tenant"]), options["environment"])
        environments.change(
            environment,
            prompt_cache=options["prompt_cache"],
            on_disconnect=options["on_disconnect"],
            cache=options["cache"],
            cache_ttl_seconds=options["cache_ttl"],
            cache_normalises=options["cache_normalises"],
        )
        return environments.as_json(environment)


def seconds(text: str) -> int:
    """A time to live as operators type it; raises ArgumentTypeError."""
    if text.isascii() and text.isdecimal() and 1 <= int(text[:20]) <= MOST_SECONDS:
        return int(text)
    raise ArgumentTypeError(f"{text[:30]!r} is no whole number of seconds from 1 to {MOST_SECONDS} (30 days)")
