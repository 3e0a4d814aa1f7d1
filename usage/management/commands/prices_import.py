from argparse import ArgumentParser
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiplatform.lib import commands
from usage import price_drafts, price_sources


class Command(commands.OperatorCommand):
    help = "Drafts of OpenAI's and Anthropic's prices from genai-prices; in force at once where a second source agrees."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--second-source", type=Path, metavar="FILE",
            help="in the format of litellm's model_prices_and_context_window_backup.json; default: the extract kept here",
        )  # fmt: skip
        parser.add_argument("--version-of-second", default="", metavar="TEXT", help="how FILE is named in the drafts")

    def perform(self, **options: Any) -> dict[str, Any]:
        file = options["second_source"]
        name = options["version_of_second"] or (file.name if file else "")
        second = price_sources.read_second_source(file, "file", name) if file else None
        return asdict(price_drafts.import_prices(second=second))

    def text(self, result: dict[str, Any]) -> str:
        counts = {name: len(result[name]) for name in ("approved", "unchanged", "waiting")}
        lines = [
            "{source} and {second_source}: {approved} prices approved, {unchanged} unchanged, "
            "{waiting} drafts wait (see prices_review).".format(**result | counts)
        ]
        for heading, named in (("waiting", result["waiting"]), ("left out", result["skipped"])):
            for reason, count in Counter(named.values()).most_common():
                names = sorted(name for name, its in named.items() if its == reason)
                lines.append(f"  {heading} {count}, {reason}: {', '.join(names)}")
        return "\n".join(lines)
