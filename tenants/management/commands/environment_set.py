from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import environments, lookup
from tenants.models import Environment


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

    def perform(self, **options: Any) -> dict[str, Any]:
        environment = lookup.environment(lookup.tenant(options["tenant"]), options["environment"])
        environments.change(environment, prompt_cache=options["prompt_cache"], on_disconnect=options["on_disconnect"])
        return environments.as_json(environment)
