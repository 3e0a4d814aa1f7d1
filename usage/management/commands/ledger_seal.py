from typing import Any

from aiplatform.lib import commands
from usage import seals


class Command(commands.OperatorCommand):
    help = (
        "Seals every ledger entry booked so far, in one block for each chain that has any; the beat does it by itself."
    )

    def perform(self, **_options: Any) -> dict[str, Any]:
        return seals.seal().as_json()

    def text(self, result: dict[str, Any]) -> str:
        done = f"{result['entries']} entries sealed in {result['blocks']} blocks"
        return (
            f"{done}." if result["is_complete"] else f"{done}; the rest is being booked or sealed by others: try again."
        )
