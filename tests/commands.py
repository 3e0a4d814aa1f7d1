"""Management commands for tests, each in a process of its own, forked from one that has loaded Django already.

An operator's `manage.py` loads Django for each command, which costs a second of CPU; tests give many commands. Here they
run the same entry point with the same arguments and environment, without loading again.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import BinaryIO, NamedTuple

import django
from django.core.management import execute_from_command_line, get_commands, load_command_class
from django.urls import get_resolver

from aiplatform.stack import ROOT


class Done(NamedTuple):
    """How a command ended: its exit code, and what it printed and complained."""

    code: int
    stdout: str
    stderr: str


class Commands:
    """The process that has loaded Django; started when it is first asked for, and again for another environment."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._environ: dict[str, str] = {}
        self._one_at_a_time = threading.Lock()

    def run(self, environ: Mapping[str, str], *arguments: str) -> Done:
        """What `manage.py` does with these arguments in this environment."""
        with self._one_at_a_time:
            return self._run(dict(environ), arguments)

    def _run(self, environ: dict[str, str], arguments: Sequence[str]) -> Done:
        if environ != self._environ:
            self.close()
        process = self._process or self._start(environ)
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(arguments) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, f"no answer from the process of commands: {process.poll()}"
        return Done(*json.loads(answer))

    def close(self) -> None:
        if self._process:
            self._process.communicate(timeout=10)
            self._process = None

    def _start(self, environ: dict[str, str]) -> subprocess.Popen[str]:
        self._environ = environ
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.commands"],
            cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self._process


def serve() -> None:
    """Answers each line of arguments, until there are no more."""
    _load()
    for line in sys.stdin:
        print(json.dumps(_forked(json.loads(line))), flush=True)


def _load() -> None:
    """All that a command would load; nothing is connected, so that a fork shares no connection."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aiplatform.settings")
    django.setup()
    _ = get_resolver().url_patterns
    for name, app in get_commands().items():
        if isinstance(app, str) and not app.startswith("django."):
            load_command_class(app, name)


def _forked(arguments: list[str]) -> Done:
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        pid = os.fork()
        if not pid:
            os._exit(_command(arguments, stdout, stderr))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return Done(code, _text(stdout), _text(stderr))


def _command(arguments: list[str], stdout: BinaryIO, stderr: BinaryIO) -> int:
    """In the forked process: its standard streams are the files, and no input is left to it."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(stdout.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    code = 0
    try:
        execute_from_command_line(["manage.py", *arguments])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does at its outermost edge
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode()


if __name__ == "__main__":
    serve()
