from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from usage import seeds


class Command(commands.OperatorCommand):
    help = "Sets up what a fresh system starts with: a tenant, an admin key kept in DATA_DIR, and providers."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--demo", action="store_true", help="the demo's tenant Acme too, as `demo`")

    def perform(self, **options: Any) -> dict[str, Any]:
        result = seeds.seed_stack()
        return {**result, "demo": seeds.seed_demo()} if options["demo"] else result
