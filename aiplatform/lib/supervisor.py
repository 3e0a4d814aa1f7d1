"""Starts programs, waits until each is ready, restarts what dies, and stops whatever it started."""

import fcntl
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self, TypedDict

import psutil

LOOK_SECONDS = 0.05
HEALTHY_SECONDS = 10
LONGEST_BACKOFF_SECONDS = 5


class StartFailed(Exception):
    """Something could not be started; the message is written for the person at the terminal."""


class PortTaken(StartFailed):
    """The program's port was taken between our look and its bind."""


class AlreadyRunning(StartFailed):
    """Another supervisor lives in this folder."""


@dataclass(frozen=True, kw_only=True)
class OsUser:
    """Whom a program runs as, when that is not us."""

    name: str
    uid: int
    gid: int


class _PopenUser(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, kw_only=True)
class Program:
    """One process to keep alive. Its pids are listed under `part`; its output goes to `log/<name>.log`."""

    name: str
    part: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path = Path("/")
    os_user: OsUser | None = None
    before_start: Callable[[], None] = lambda: None
    is_ready: Callable[[int], bool] = lambda _pid: True
    ready_seconds: float = 90
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 35


@dataclass
class _Running:
    program: Program
    process: subprocess.Popen[bytes]
    started_at: float
    log_offset: int
    is_ready: bool = False
    crashes: int = 0
    restart_at: float | None = None


@dataclass
class Supervisor:
    """Owns `folder`: one supervisor at a time, and what a killed one left running is stopped first.

    Use it as a context manager. `on_change` is called, from any thread, when a pid has changed.
    """

    folder: Path
    say: Callable[[str], None] = lambda _line: None
    on_change: Callable[[], None] = lambda: None
    _running: list[_Running] = field(default_factory=list, init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)
    _folder_lock: IO[str] | None = field(default=None, init=False)
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _watcher: threading.Thread | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        for name in ("log", "run"):
            (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder_lock = _lock_file(self.folder / "lock")
        self._stop_leftovers()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def start(self, *programs: Program) -> None:
        """Starts all, then waits until all are ready. Raises StartFailed with the log's end of the one that is not."""
        started = [self._spawn(program) for program in programs]
        self.on_change()
        for running in started:
            self._wait_until_ready(running)
        self.on_change()

    def run_once(self, name: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path, seconds: float = 600) -> str:
        """Runs a program to its end and returns what it printed. Raises StartFailed unless it exits with 0."""
        log = self.folder / "log" / f"{name}.log"
        offset = _size(log)
        with log.open("ab") as errors:
            try:
                done = subprocess.run(
                    argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                    timeout=seconds, check=False, text=True,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise StartFailed(f"{name} did not end within {seconds:.0f} s{_tail(log, offset)}") from None
        if done.returncode:
            raise StartFailed(f"{name} failed with exit code {done.returncode}{_tail(log, offset)}")
        return done.stdout

    def pids(self) -> dict[str, list[int]]:
        """Live pids by part, in the order in which the programs were started."""
        with self._lock:
            found: dict[str, list[int]] = {}
            for running in self._running:
                found.setdefault(running.program.part, []).append(running.process.pid)
            return found

    def stop(self) -> None:
        """Stops every program, the last part first, the programs of one part together."""
        self._stopping.set()
        if self._watcher and self._watcher is not threading.current_thread():
            self._watcher.join()
        with self._lock:
            while self._running:
                part = self._running[-1].program.part
                self._end([running for running in self._running if running.program.part == part])
            if self._folder_lock:
                self._folder_lock.close()
                self._folder_lock = None

    def _spawn(self, program: Program) -> _Running:
        with self._lock:
            log = self.folder / "log" / f"{program.name}.log"
            running = _Running(program, _popen(program, log), time.monotonic(), _size(log))
            self._running.append(running)
            self._record()
            return running

    def _wait_until_ready(self, running: _Running) -> None:
        program, log = running.program, self.folder / "log" / f"{running.program.name}.log"
        deadline = running.started_at + program.ready_seconds
        while True:
            code = running.process.poll()
            if code is None and program.is_ready(running.process.pid):
                running.is_ready = True  # from here on the watcher restarts it
                self.say(f"{program.name} is ready after {time.monotonic() - running.started_at:.1f} s")
                return
            if code is not None or time.monotonic() > deadline:
                tail = _tail(log, running.log_offset)
                self._end([running])
                if "Address already in use" in tail:
                    raise PortTaken(f"the port of {program.name} is taken{tail}")
                end = (
                    f"ended with exit code {code}"
                    if code is not None
                    else f"was not ready within {program.ready_seconds:.0f} s"
                )
                raise StartFailed(f"{program.name} {end}{tail or f'; its log is {log}'}")
            time.sleep(LOOK_SECONDS)

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            with self._lock:
                changed = [running for running in self._running if running.is_ready and self._revive(running)]
            if changed:
                with suppress(OSError):  # a full disk must not end our watch
                    self.on_change()

    def _revive(self, running: _Running) -> bool:
        if running.process.poll() is None:
            return False
        now = time.monotonic()
        if running.restart_at is None:
            running.crashes = 0 if now - running.started_at > HEALTHY_SECONDS else running.crashes + 1
            delay = min(0.1 * 2**running.crashes, LONGEST_BACKOFF_SECONDS) if running.crashes > 1 else 0
            running.restart_at = now + delay
            self.say(f"{running.program.name} died (exit code {running.process.returncode}); starting it again")
        if now < running.restart_at:
            return False
        try:
            running.process = _popen(running.program, self.folder / "log" / f"{running.program.name}.log")
        except (OSError, StartFailed) as error:
            self.say(f"{running.program.name} could not be started again: {error}")
            running.restart_at = now + LONGEST_BACKOFF_SECONDS
            return False
        running.started_at, running.restart_at = now, None
        with suppress(OSError):
            self._record()
        return True

    def _end(self, some: Sequence[_Running]) -> None:
        with self._lock:
            for running in some:
                with suppress(ProcessLookupError):
                    running.process.send_signal(running.program.stop_signal)
            for running in some:
                try:
                    running.process.wait(running.program.stop_seconds)
                except subprocess.TimeoutExpired:
                    running.process.kill()
                    running.process.wait()
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(running.process.pid, signal.SIGKILL)  # what it may have left behind in its session
                self._running.remove(running)
            with suppress(OSError):  # on a full disk we still stop what is left
                self._record()

    def _record(self) -> None:
        entries = [
            {"name": it.program.name, "pid": it.process.pid, "created": created, "signal": it.program.stop_signal.value}
            for it in self._running
            if (created := _created(it.process.pid))
        ]
        write_private(self.folder / "run" / "processes.json", json.dumps(entries))

    def _stop_leftovers(self) -> None:
        record = self.folder / "run" / "processes.json"
        try:
            entries = json.loads(record.read_text())
        except (OSError, ValueError):
            return
        for entry in reversed(entries):
            # The clock that create_time is made from may be set by a second; a reused pid is much younger.
            if abs(_created(entry["pid"]) - entry["created"]) < 2:  # noqa: PLR2004
                self.say(f"stopping {entry['name']} (pid {entry['pid']}), which an earlier run left behind")
                stop_process(psutil.Process(entry["pid"]), entry["signal"])
        record.unlink()


def as_user(user: OsUser | None) -> _PopenUser:
    """What subprocess needs to run a program as that user."""
    return _PopenUser(user=user.uid, group=user.gid, extra_groups=[]) if user else _PopenUser()


def stop_process(process: psutil.Process, first_signal: int, seconds: float = 15) -> None:
    """Stops a process that is not our child, by force after `seconds`."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(first_signal)
        deadline = time.monotonic() + seconds
        while is_alive(process):
            if time.monotonic() > deadline:
                process.kill()
            time.sleep(LOOK_SECONDS)


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not, though in a container it may wait long for somebody to notice."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def orphan(pid_file: Path, name: str, folder: Path) -> psutil.Process | None:
    """The process that a pid file names, if it lives and is really that program at work in that folder."""
    try:
        process = psutil.Process(int(pid_file.read_text().split("\n", 1)[0]))
        return process if process.name() == name and Path(process.cwd()) == folder.resolve() else None
    except (FileNotFoundError, ValueError, psutil.Error):
        return None


def answers(url: str) -> bool:
    """Whether a GET is answered with 200 within two seconds."""
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=2)
    try:
        connection.request("GET", address.path or "/")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port on which nobody listens, below the range from which the system serves outgoing connections.

    So a crashed server finds its port still free when it is started again.
    """
    for _ in range(200):
        port = random.randrange(20000, 32000)  # noqa: S311 - no secret
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((host, port))
                return port
    raise StartFailed(f"found no free TCP port on {host}")


def start_on_free_port(supervisor: Supervisor, program: Callable[[int], Program], tries: int = 5) -> int:
    """Starts `program(port)` on a free port, on another one if somebody was quicker; returns the port."""
    for left in reversed(range(tries)):
        port = free_port()
        try:
            supervisor.start(program(port))
        except PortTaken:
            if not left:
                raise
        else:
            return port
    raise AssertionError("unreachable")


def write_private(path: Path, text: str) -> None:
    """Replaces a file in one step; only its owner may read it."""
    new = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def _lock_file(path: Path) -> IO[str]:
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise AlreadyRunning(f"{path.parent} is in use by another run") from None
    return file


def _popen(program: Program, log: Path) -> subprocess.Popen[bytes]:
    program.before_start()
    # An inherited pipe would keep a caller waiting on a server that outlives us; so: files only, an own session.
    with log.open("ab") as output:
        return subprocess.Popen(
            program.argv, env=program.env, cwd=program.cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, **as_user(program.os_user),
        )  # fmt: skip


def _created(pid: int) -> float:
    try:
        process = psutil.Process(pid)
        return process.create_time() if is_alive(process) else 0.0
    except psutil.Error:
        return 0.0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tail(log: Path, offset: int, lines: int = 12) -> str:
    with suppress(OSError), log.open(errors="replace") as file:
        file.seek(offset)
        last = file.read().splitlines()[-lines:]
        return "".join(f"\n    {line}" for line in last) + (f"\n  (from {log})" if last else "")
    return ""
