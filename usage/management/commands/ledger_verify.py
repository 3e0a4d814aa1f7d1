from typing import Any

from aiplatform.lib import commands
from usage import audit


class Command(commands.OperatorCommand):
    help = "Recomputes every cap, hold and balance from the rows; exit code 1 and a list on any difference."

    def perform(self, **_options: Any) -> dict[str, Any]:
        found = audit.verify()
        return {"ok": found.ok, "checked": found.checked, "drift": found.drift}

    def text(self, result: dict[str, Any]) -> str:
        counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in result["checked"].items())
        drift = [
            f"  {it['what']} {it['subject']}, {it['field']}: {it['found']} instead of {it['expected']}"
            for it in result["drift"]
        ]
        verdict = f"{len(drift)} differences:" if drift else "all as it should be."
        return "\n".join([f"Checked {counts}: {verdict}", *drift])

    def exit_code(self, result: dict[str, Any]) -> int:
        return 0 if result["ok"] else 1
