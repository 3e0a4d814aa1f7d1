"""Runs the whole system, or the parts named, on one machine: for the demo, the tests and the benchmarks.

It knows the Procfile and nothing of Django: web, worker and beat run here by the same lines as in production.
"""

import argparse
import ipaddress
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self

import psutil

from aiplatform.lib.embedded import postgres, valkey
from aiplatform.lib.supervisor import (
    AlreadyRunning,
    Program,
    StartFailed,
    Supervisor,
    answers,
    free_port,
    write_private,
)

ROOT = Path(__file__).resolve().parents[1]
SERVERS = ("postgres", "valkey")
APP = ("web", "worker", "beat")
PARTS = SERVERS + APP
TEMPORARY = "aiplatform-"
OWNER_VARIABLE = "DATABASE_OWNER_URL"


class Stack:
    """A running system, as a context manager. `facts` is what `bin/stack` prints; pids in it are kept fresh.

    `data` is a folder that stays; without it a temporary one is used and removed. A DATABASE_URL or REDIS_URL in
    `environ` is used instead of a server of our own. Everything else in `environ` reaches every process, except that
    only what migrates is told the owner of the database.
    The `extra` programs, say a provider, are started after the servers and before web, worker and beat.
    """

    seed_command: Sequence[str] = ("stack_seed",)

    def __init__(
        self,
        *,
        data: Path | None = None,
        parts: Sequence[str] = PARTS,
        web: int | None = None,
        workers: int | None = None,
        port: int | None = None,
        extra: Sequence[Program] = (),
        environ: Mapping[str, str] = os.environ,
        root: Path = ROOT,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.parts = parts
        self.extra = extra
        self.counts = {
            "web": web or _count(environ, "WEB_PROCESSES"),
            "worker": workers or _count(environ, "WORKER_PROCESSES"),
            "beat": 1,
        }
        self.port = port
        self.root = root
        self.facts: dict[str, Any] = {}
        self.data = data.absolute() if data else None
        self._environ = environ
        self._say = say
        self._closing = ExitStack()
        self._urls: dict[str, str | None] = {}
        self._seeds: dict[str, Any] = {}

    def __enter__(self) -> Self:
        with self._closing as closing:  # undoes what was done if a step fails
            self._start(closing)
            self._closing = closing.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._closing.close()

    @property
    def env(self) -> dict[str, str]:
        """The environment of what sets the system up; call it after the servers have started."""
        binaries = str(Path(sys.executable).parent)
        given = {
            **self._environ,
            "PATH": os.pathsep.join([binaries, self._environ.get("PATH", "/usr/bin:/bin")]),
            "DATA_DIR": str(self.data),
            "HOST": self.host,
            "PORT": str(self.port or ""),
            **self._urls,
        }
        return {name: value for name, value in given.items() if value}

    @property
    def _app_env(self) -> dict[str, str]:
        return {name: value for name, value in self.env.items() if name != OWNER_VARIABLE}

    @property
    def command_env(self) -> dict[str, str]:
        """The environment for a command that works against the system."""
        given = {
            **self.env,
            "AIPLATFORM_BASE_URL": self.facts["base_url"],
            "AIPLATFORM_ADMIN_KEY": self.facts.get("admin_key"),
            "AIPLATFORM_DATA_DIR": self.facts["data_dir"],
            "AIPLATFORM_STACK_JSON": str(self._facts_file),
        }
        return {name: value for name, value in given.items() if value}

    @property
    def host(self) -> str:
        """HOST if it is an address; some shells put the machine's name there."""
        given = self._environ.get("HOST", "")
        with suppress(ValueError):
            return str(ipaddress.ip_address(given))
        return "127.0.0.1"

    def add(self, program: Program) -> None:
        """Starts one more program, waits until it is ready and keeps it alive; it is stopped before the others."""
        self.supervisor.start(program)
        self._refresh()

    def start_app(self) -> None:
        """Migrates, seeds, and starts what was named of web, worker and beat, as the Procfile says."""
        lines = procfile(self.root / "Procfile")
        self._run_once("release", ["sh", "-c", f"exec {lines['release']}"])
        self._seed()
        self.supervisor.start(*self._app_programs(lines))
        self._refresh()

    def _start(self, closing: ExitStack) -> None:
        self.data = closing.enter_context(_folder(self.data))
        self.supervisor = Supervisor(self.data, say=self._say, on_change=self._refresh)
        try:
            closing.enter_context(self.supervisor)
        except AlreadyRunning:
            raise AlreadyRunning(self._who_runs_already()) from None
        self._facts_file.unlink(missing_ok=True)
        closing.callback(self._facts_file.unlink, missing_ok=True)
        self._reserve_port(closing)
        self._start_servers(closing)
        self.supervisor.start(*self.extra)
        if any(part in self.parts for part in APP):
            self.start_app()
        self._refresh()

    def _start_servers(self, closing: ExitStack) -> None:
        self._urls = {name: self._environ.get(name) for name in ("DATABASE_URL", OWNER_VARIABLE, "REDIS_URL")}
        if not self._urls["DATABASE_URL"] and "postgres" in self.parts:
            database = postgres.start(self.supervisor)
            self._urls |= {"DATABASE_URL": database.application, OWNER_VARIABLE: database.owner}
        if not self._urls["REDIS_URL"] and "valkey" in self.parts:
            self._urls["REDIS_URL"] = valkey.start(self.supervisor)
        env_file = self.supervisor.folder / "stack.env"
        closing.callback(env_file.unlink, missing_ok=True)
        given = (f"{name}={shlex.quote(url)}\n" for name, url in self._urls.items() if url)
        write_private(env_file, "".join(given))

    def _reserve_port(self, closing: ExitStack) -> None:
        """Keeps the web's port ours while no web process holds it: bound, but not listening, we get no connection."""
        if "web" not in self.parts and not self.port:
            return
        asked = self.port
        self.port = asked or free_port(self.host)
        holder = closing.enter_context(socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET))
        try:
            with socket.socket(holder.family) as probe:  # without SO_REUSEPORT it fails where another system listens
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((self.host, self.port))
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind((self.host, self.port))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such port"
            raise StartFailed(
                f"cannot listen on {self.host}:{self.port} ({reason}); choose another with --port"
            ) from None

    def _seed(self) -> None:
        """Asks the product for a first tenant and an admin key; what it prints becomes part of our facts."""
        printed = self._run_once("seed", [sys.executable, "manage.py", *self.seed_command, "--json"])
        try:
            self._seeds = json.loads(printed.strip().splitlines()[-1])
        except (IndexError, ValueError):
            raise StartFailed("manage.py stack_seed printed no JSON object on its last line") from None

    def _run_once(self, name: str, argv: Sequence[str]) -> str:
        return self.supervisor.run_once(name, argv, self.env, self.root)

    def _app_programs(self, lines: Mapping[str, str]) -> Iterator[Program]:
        for part in (part for part in APP if part in self.parts):
            for instance in range(1, self.counts[part] + 1):
                yield self._app_program(part, instance, lines[part])

    def _app_program(self, part: str, instance: int, line: str) -> Program:
        name = f"{part}-{instance}"
        ready_file = self.supervisor.folder / "run" / f"{name}.ready"
        is_ready = {"web": self._web_is_ready, "worker": lambda _pid: ready_file.exists(), "beat": lambda _pid: True}
        return Program(
            name=name,
            part=part,
            argv=["sh", "-c", f"exec {line}"],
            env={**self._app_env, "INSTANCE": str(instance)},
            cwd=self.root,
            before_start=lambda: ready_file.unlink(missing_ok=True),
            is_ready=is_ready[part],
        )

    def _web_is_ready(self, pid: int) -> bool:
        """This very process listens, and somebody on its port answers: the kernel chooses who."""
        with suppress(psutil.Error):
            listens = any(it.status == psutil.CONN_LISTEN for it in psutil.Process(pid).net_connections("inet"))
            return listens and answers(f"{self._base_url}/healthz")
        return False

    @property
    def _base_url(self) -> str:
        host = ipaddress.ip_address(self.host)
        if host.is_unspecified:
            host = ipaddress.ip_address("127.0.0.1" if host.version == 4 else "::1")  # noqa: PLR2004
        return f"http://{host if host.version == 4 else f'[{host}]'}:{self.port}" if self.port else ""  # noqa: PLR2004

    @property
    def _facts_file(self) -> Path:
        return self.supervisor.folder / "run" / "stack.json"

    def _refresh(self) -> None:
        pids = self.supervisor.pids()
        self.facts = {
            "base_url": self._base_url,
            "database_url": self._urls.get("DATABASE_URL"),
            "database_owner_url": self._urls.get(OWNER_VARIABLE),
            "redis_url": self._urls.get("REDIS_URL"),
            "pids": {part: pids.get(part, []) for part in dict.fromkeys([*PARTS, *pids])},
            "data_dir": str(self.supervisor.folder),
            **self._seeds,
        }
        write_private(self._facts_file, json.dumps(self.facts) + "\n")

    def _who_runs_already(self) -> str:
        try:
            where = json.loads(self._facts_file.read_text())["base_url"] or "without a web process"
        except (OSError, ValueError, KeyError):
            where = "and is still starting"
        return f"a system with its data in {self.data} runs already: {where}"


def procfile(path: Path) -> dict[str, str]:
    """The lines of a Procfile by process name."""
    lines = (line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#"))
    return {name.strip(): command.strip() for name, _, command in (line.partition(":") for line in lines)}


def _count(environ: Mapping[str, str], variable: str) -> int:
    given = environ.get(variable) or "1"
    if not given.isdecimal() or int(given) < 1:
        raise StartFailed(f"{variable} must be a number of processes, not {given!r}")
    return int(given)


@contextmanager
def _folder(data: Path | None) -> Iterator[Path]:
    """The folder asked for, which stays, or a temporary one. Root's stand-in may pass through, nobody may list it."""
    if data:
        if not data.exists():
            data.mkdir(parents=True)
            data.chmod(0o711)
        yield data
        return
    _remove_abandoned()
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY))
    temporary.chmod(0o711)
    try:
        yield temporary
    finally:
        _remove(temporary)


def _remove_abandoned() -> None:
    """Stops and deletes what killed runs left in temporary folders.

    A folder in use is locked, and one that was just made has no record yet.
    """
    for record in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*/run/processes.json"):
        folder = record.parents[1]
        with suppress(OSError, AlreadyRunning):
            if folder.lstat().st_uid == os.geteuid():
                with Supervisor(folder):
                    _remove(folder)


def _remove(folder: Path) -> None:
    postgres.remove(folder)
    shutil.rmtree(folder, ignore_errors=True)


class Stopped(SystemExit):
    """SIGINT, SIGTERM or SIGHUP came; as an exit it unwinds everything that is open."""


def stop_on_signals() -> None:
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, lambda *_: None)  # we are stopping; a second one must not leave the half of it running
        raise Stopped(128 + number)

    for number in numbers:
        signal.signal(number, stop)


def _run(command: Sequence[str], env: Mapping[str, str]) -> int:
    try:
        process = subprocess.Popen(command, env=env)
    except OSError as error:
        print(f"bin/stack: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    try:
        code = process.wait()
    except Stopped as stopped:
        # A Ctrl-C has reached the command, too: it shares our terminal. Other signals are ours to pass on.
        number = int(str(stopped.code)) - 128
        if number != signal.SIGINT or not os.isatty(0):
            process.send_signal(number)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return int(str(stopped.code))
    return code if code >= 0 else 128 - code


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    own, command = list(argv), []
    if "--" in own:
        cut = own.index("--")
        own, command = own[:cut], own[cut + 1 :]
    parser = argparse.ArgumentParser(
        prog="bin/stack",
        usage="%(prog)s [options] [-- COMMAND...]",
        description="Starts the whole system or the parts named; runs COMMAND against it, or stays until Ctrl-C. "
        "DATABASE_URL, REDIS_URL, WEB_PROCESSES, WORKER_PROCESSES and all settings come from the environment.",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="keep the data here (default: a temporary folder)")
    parser.add_argument("--web", type=_positive, metavar="N", help="web processes, on one port")
    parser.add_argument("--workers", type=_positive, metavar="N", help="worker processes")
    parser.add_argument("--parts", type=_parts, default=PARTS, metavar="A,B", help=f"only these of {','.join(PARTS)}")
    parser.add_argument("--port", type=_positive, metavar="P", help="port of the web processes (default: a free one)")
    parser.add_argument(
        "--json", action="store_true", help="nothing but the JSON line on stdout, no progress on stderr"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing, let COMMAND speak")
    arguments = parser.parse_args(own)
    arguments.command = command
    return arguments


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a positive number: {text}")
    return int(text)


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)} (known: {', '.join(PARTS)})")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    stop_on_signals()
    try:
        return _hold_up(arguments)
    except StartFailed as error:
        print(f"bin/stack: {error}", file=sys.stderr)
    except OSError as error:
        where = error.filename or arguments.data or tempfile.gettempdir()
        advice = "make room there, or choose another folder with --data (for temporary ones: TMPDIR)"
        print(f"bin/stack: {error.strerror or error}: {where}; {advice}", file=sys.stderr)
    return 1


def _hold_up(arguments: argparse.Namespace) -> int:
    def show(line: str) -> None:
        if not arguments.quiet:
            print(line, flush=True)

    def say(line: str) -> None:
        if not arguments.quiet and not arguments.json:
            print(line, file=sys.stderr, flush=True)

    with Stack(
        data=arguments.data,
        parts=arguments.parts,
        web=arguments.web,
        workers=arguments.workers,
        port=arguments.port,
        say=say,
    ) as stack:
        if arguments.command:
            show(json.dumps(stack.facts))
            code = _run(arguments.command, stack.command_env)
            show(json.dumps({**stack.facts, "exit_code": code}))
            return code
        with suppress(Stopped):
            show(json.dumps(stack.facts))
            while True:
                signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
