from typing import Any

from aiplatform.lib import commands
from usage import price_drafts


class Command(commands.OperatorCommand):
    help = "Lists the drafts of prices that wait for a person: what each would change, and where sources differ."

    def perform(self, **_options: Any) -> dict[str, Any]:
        return {"drafts": price_drafts.review()}

    def text(self, result: dict[str, Any]) -> str:
        lines = []
        for draft in result["drafts"]:
            lines.append(f"{draft['draft']}  {draft['provider']} {draft['model']}, {draft['source']}: {draft['why']}")
            lines += [f"      {_figure(one)}: now {one['now']}, draft {one['draft']}" for one in draft["changes"]]
            lines += [
                f"      {_figure(one)}: draft {one['draft']}, {draft['second_source']} {one['second']}"
                for one in draft["disagreements"]
                if one["draft"] and one["second"]
            ]
        return "\n".join(lines) or "No draft waits."


def _figure(one: dict[str, Any]) -> str:
    tier = f" from {one['tier_from']} tokens" if one["tier_from"] else ""
    return f"{one['meter']} ({one['variant']}){tier}, USD per million"
