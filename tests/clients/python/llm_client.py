"""The command `llm`, which takes its models from a file."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import Ask, Told, main, usage

MODEL = "ours"


def run(ask: Ask, *arguments: str) -> tuple[str, Any]:
    """What it prints, and what it logs of the answer."""
    with tempfile.TemporaryDirectory() as folder:
        model = {"model_id": MODEL, "model_name": ask.model, "api_base": ask.v1, "api_key_name": MODEL, "supports_schema": True,
                 "supports_tools": True}  # fmt: skip
        Path(folder, "extra-openai-models.yaml").write_text(
            "- " + "\n  ".join(f"{k}: {json.dumps(v)}" for k, v in model.items())
        )
        env = os.environ | {"LLM_USER_PATH": folder}
        llm = str(Path(sys.executable).parent / "llm")
        asked = [
            llm,
            ask.text,
            "--model",
            MODEL,
            "--key",
            ask.key,
            "--option",
            "max_tokens",
            str(ask.limit),
            *arguments,
        ]
        done = subprocess.run(asked, env=env, capture_output=True, text=True, check=False, timeout=90)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        logged = subprocess.run([llm, "logs", "--json", "-n", "1"], env=env, capture_output=True, text=True, check=True)
        return done.stdout.strip(), json.loads(logged.stdout)[0]


def counted(logged: Any) -> Told:
    return usage(logged["input_tokens"], logged["output_tokens"])


def plain(ask: Ask) -> Told:
    text, logged = run(ask, "--no-stream")
    return {"text": text, "usage": counted(logged)}


def streamed(ask: Ask) -> Told:
    text, logged = run(ask)
    return {"text": text, "usage": counted(logged)}


def tools(ask: Ask) -> Told:
    function = f"def weather(city: str) -> str:\n    'The weather in a city.'\n    return {ask.text!r} + ': 21 degrees in ' + city"
    text, logged = run(ask, "--no-stream", "--functions", function)
    calls = [call["arguments"]["city"] for call in logged.get("tool_calls", [])]
    return {"tools": calls or None, "text": text, "usage": None}


def structured(ask: Ask) -> Told:
    text, logged = run(ask, "--no-stream", "--schema", "city, degrees int")
    return {"object": json.loads(text), "usage": counted(logged)}


if __name__ == "__main__":
    main(plain=plain, streamed=streamed, tools=tools, structured=structured)
