from typing import Any

from aiplatform.lib import commands
from usage import seeds


class Command(commands.OperatorCommand):
    help = "Sets up what a fresh system starts with: a tenant, an admin key kept in DATA_DIR, and providers."

    def perform(self, **_options: Any) -> dict[str, Any]:
        return seeds.seed_stack()
