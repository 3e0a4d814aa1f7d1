from typing import Any

from aiplatform.lib import commands
from usage import seeds


class Command(commands.OperatorCommand):
    help = "Sets up the demo's tenant Acme: people, keys, limits, caps and the local model."

    def perform(self, **_options: Any) -> dict[str, Any]:
        return seeds.seed_demo()
