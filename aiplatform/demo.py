"""The demo: the whole system on this machine, one call with each vendor's SDK, and what each cost.

It knows the system from outside only, as its users do: by its URL, a key, and the operator's commands.
"""

import argparse
import importlib
import json
import os
import secrets
import signal
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiplatform.lib import local_model
from aiplatform.lib.supervisor import PortTaken, Program, StartFailed, free_port
from aiplatform.stack import ROOT, Stack, Stopped, stop_on_signals
from usage import receipt_text

QUESTION = "In one sentence: why should a program hold money before it spends it?"
MAX_TOKENS = 64
PORT_TRIES = 3
SDKS = ("openai", "anthropic")


class DemoFailed(Exception):
    """Something that the demo shows did not work; the message is written for the person at the terminal."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    stop_on_signals()
    try:
        return _run(arguments)
    except (StartFailed, DemoFailed) as error:
        print(f"bin/demo: {error}", file=sys.stderr)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        advice = "free some space, or choose another folder with --data"
        print(f"bin/demo: cannot use{where}: {error.strerror or error}; {advice}", file=sys.stderr)
    return 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bin/demo",
        description="Starts the whole system here, makes one call with each SDK, shows what it cost, and stays until "
        "Ctrl-C. OPENAI_API_KEY and ANTHROPIC_API_KEY add the real providers.",
    )
    parser.add_argument("--once", action="store_true", help="make the calls, print the receipts as JSON, and stop")
    parser.add_argument(
        "--provider", choices=("local", "sandbox"), default="local",
        help="who answers: a small language model on this machine, or the built-in sandbox (default: local)",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, default=ROOT / ".data", metavar="DIR", help="where the data is kept")
    parser.add_argument("--port", type=int, metavar="P", help="the port to serve on (default: a free one)")
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    provider = _provider(arguments.provider)
    # A proxy of this machine's environment has no business between its own processes.
    for variable in ("NO_PROXY", "no_proxy"):
        os.environ[variable] = ",".join(filter(None, ["127.0.0.1,localhost,::1", os.environ.get(variable)]))
    # The vendors' SDKs take seconds to import; a second processor can do that while the system starts.
    threading.Thread(target=lambda: [importlib.import_module(name) for name in SDKS], daemon=True).start()
    with Demo(data=arguments.data, port=arguments.port, with_model=provider == "local") as stack:
        seeds = stack.facts["demo"]
        seconds = round(time.monotonic() - began, 1)
        print(_bold(f"\nReady after {seconds} s. Two calls through the gateway, one with each vendor's own SDK:"))
        calls = Calls(stack.facts["base_url"], seeds, provider)
        shown = [_show(calls.openai), _show(calls.anthropic)]
        print(_outro(stack, seeds, provider))
        if arguments.once:
            print(json.dumps({"base_url": stack.facts["base_url"], "ready_seconds": seconds, "calls": shown}))
            return 0
        _stay()
    return 0


def _provider(wanted: str) -> str:
    problem = local_model.missing() if wanted == "local" else ""
    if not problem:
        return wanted
    print(f"bin/demo: {problem}. The built-in sandbox answers instead.", file=sys.stderr)
    return "sandbox"


class Demo(Stack):
    """The system with a language model beside it, to which only its workers have the key."""

    seed_command = ("stack_seed", "--demo")

    def __init__(self, *, data: Path, port: int | None, with_model: bool) -> None:
        super().__init__(data=data, port=port, say=_progress)
        self.with_model = with_model
        self.model_env = {"LOCAL_MODEL_KEY": secrets.token_urlsafe(24)}

    @property
    def env(self) -> dict[str, str]:
        return {**super().env, **self.model_env}

    def start_app(self) -> None:
        if self.with_model:
            self._start_model()
        super().start_app()

    def _start_model(self) -> None:
        for tries_left in reversed(range(PORT_TRIES)):
            port = free_port()
            try:
                self.add(self._model(port))
            except PortTaken:
                if not tries_left:
                    raise
            else:
                self.model_env["LOCAL_MODEL_URL"] = f"http://127.0.0.1:{port}"
                return

    def _model(self, port: int) -> Program:
        return Program(
            name="local-model",
            part="model",
            argv=[sys.executable, "-m", "aiplatform.lib.local_model", "--port", str(port)],
            env={**self._app_env, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            is_ready=lambda _pid: _answers(f"http://127.0.0.1:{port}/health"),
            ready_seconds=120,
        )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:  # noqa: S310 - our own address
            return bool(reply.status == 200)  # noqa: PLR2004 - it answers
    except OSError:
        return False


class Calls:
    """One call with each SDK, unchanged but for its base URL and key."""

    def __init__(self, base_url: str, seeds: dict[str, Any], provider: str) -> None:
        self.base_url = base_url
        self.key = seeds["keys"]["prod"]
        self.model = seeds["models"][provider]
        self.end_user = seeds["end_user"]

    def openai(self) -> dict[str, Any]:
        import openai  # noqa: PLC0415 - see _run

        client = openai.OpenAI(base_url=f"{self.base_url}/v1", api_key=self.key)
        raw = client.chat.completions.with_raw_response.create(
            model=self.model,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=MAX_TOKENS,
            user=self.end_user,
        )
        answer = raw.parse().choices[0].message.content or ""
        return self._told("openai", "plain", answer, raw.headers["x-call-id"])

    def anthropic(self) -> dict[str, Any]:
        import anthropic  # noqa: PLC0415 - see _run

        client = anthropic.Anthropic(base_url=self.base_url, api_key=self.key)
        with client.messages.stream(
            model=self.model,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=MAX_TOKENS,
            metadata={"user_id": self.end_user},
        ) as stream:
            answer = "".join(stream.text_stream)
            call_id = stream.response.headers["x-call-id"]
        return self._told("anthropic", "streamed", answer, call_id)

    def _told(self, sdk: str, how: str, answer: str, call_id: str) -> dict[str, Any]:
        return {"sdk": sdk, "how": how, "answer": answer, "receipt": self.receipt(call_id)}

    def receipt(self, call_id: str) -> dict[str, Any]:
        """The call's receipt, by the REST API."""
        request = urllib.request.Request(  # noqa: S310 - our own address
            f"{self.base_url}/api/calls/{call_id}", headers={"authorization": f"Bearer {self.key}"}
        )
        with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310 - as above
            found: dict[str, Any] = json.load(reply)
        return found


def _show(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    import anthropic  # noqa: PLC0415 - see _run
    import openai  # noqa: PLC0415

    try:
        told = call()
    except (openai.OpenAIError, anthropic.AnthropicError, urllib.error.URLError) as error:
        raise DemoFailed(f"the call with the {call.__name__} SDK failed: {error}") from error
    title = f" {told['sdk']} SDK, {told['how']} "
    print(f"\n{_bold(title.center(100, '-'))}\n")
    answer = receipt_text.printable(" ".join(told["answer"].split()))
    print(textwrap.fill(f"> {answer}", 96, initial_indent="  ", subsequent_indent="    "))
    print(f"\n{receipt_text.text(told['receipt'])}", flush=True)
    return told


def _outro(stack: Stack, seeds: dict[str, Any], provider: str) -> str:
    url, key = stack.facts["base_url"], seeds["keys"]["prod"]
    model = seeds["models"][provider]
    people = ", ".join(seeds["users"].values())
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    return "\n".join(
        [
            f"\n{_bold(' yours '.center(100, '-'))}\n",
            f"  dashboard   {url}/",
            f"  people      {people}",
            f"  password    {seeds['password']}",
            f"  key         {key}",
            f"\n  curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\",
            f"    -H 'Content-Type: application/json' -d '{body}'\n",
        ]
    )


def _stay() -> None:
    print("Serving until Ctrl-C.", flush=True)
    with suppress(Stopped):
        while True:
            signal.pause()
    print("\nStopping.", flush=True)


def _progress(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def _bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


if __name__ == "__main__":
    sys.exit(main())
