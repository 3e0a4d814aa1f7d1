import json
from argparse import ArgumentParser
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiplatform.lib import commands
from usage import price_sources


class Command(commands.OperatorCommand):
    help = (
        "Writes the extract of a second source that is kept with the code: figures of the models that genai-prices has."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "file", type=Path, metavar="FILE", help="litellm's model_prices_and_context_window_backup.json"
        )
        parser.add_argument("--name", required=True, metavar="NAME")
        parser.add_argument("--of-version", required=True, metavar="VERSION")
        parser.add_argument("--out", type=Path, default=price_sources.EXTRACT, metavar="FILE")

    def perform(self, **options: Any) -> dict[str, Any]:
        source = price_sources.read_second_source(options["file"], options["name"], options["of_version"])
        kept = price_sources.extract(source, price_sources.genai_prices(datetime.now(UTC)).parts)
        models = {
            provider: ",\n".join(f"    {json.dumps(model)}: {json.dumps(figures)}" for model, figures in each.items())
            for provider, each in kept.pop("models").items()
        }
        body = ",\n".join(f'  "{provider}": {{\n{rows}\n  }}' for provider, rows in models.items())
        head = json.dumps(kept)[1:-1]
        options["out"].write_text(f'{{{head}, "models": {{\n{body}\n}}}}\n')
        return {"models": sum(rows.count("\n") + 1 for rows in models.values()), "file": str(options["out"])}
