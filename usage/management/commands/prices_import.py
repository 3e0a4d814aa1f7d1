from collections import Counter
from dataclasses import asdict
from typing import Any

from aiplatform.lib import commands
from usage import pricebook


class Command(commands.OperatorCommand):
    help = "Imports the flat prices of OpenAI's and Anthropic's models from genai-prices; prices set by hand stay."

    def perform(self, **_options: Any) -> dict[str, Any]:
        return asdict(pricebook.import_prices())

    def text(self, result: dict[str, Any]) -> str:
        lines = [f"{result['source']}: {len(result['added'])} prices added, {len(result['unchanged'])} unchanged."]
        reasons = Counter(result["skipped"].values())
        for reason, count in reasons.most_common():
            names = sorted(name for name, its in result["skipped"].items() if its == reason)
            lines.append(f"  left out {count}, {reason}: {', '.join(names)}")
        return "\n".join(lines)
