"""PostgreSQL and Valkey from wheels: they start anywhere, lose nothing, and say what is wrong."""

import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import LiteralString

import psutil
import psycopg
import pytest
import redis

from aiplatform.lib.embedded import postgres, valkey
from aiplatform.lib.supervisor import StartFailed, Supervisor, as_user

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's own, which is closed to the account that PostgreSQL runs as when we are root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)
    yield folder
    postgres.remove(folder)
    shutil.rmtree(folder)


def test_data_outlives_a_stop_and_a_start(folder: Path) -> None:
    with Supervisor(folder) as supervisor:
        _remember(postgres.start(supervisor).owner, "kept")
    with Supervisor(folder) as supervisor:
        assert _remembered(postgres.start(supervisor).owner) == ["kept"]


def test_a_killed_postgres_comes_back_with_its_data_under_the_same_url(folder: Path) -> None:
    with Supervisor(folder) as supervisor:
        url = postgres.start(supervisor).owner
        _remember(url, "committed")
        killed = _kill(supervisor, "postgres")
        _until(lambda: _answers(url))
        assert _remembered(url) == ["committed"]
        assert supervisor.pids()["postgres"] != [killed]


def test_the_urls_role_is_no_superuser_but_may_make_roles_and_databases(folder: Path) -> None:
    with Supervisor(folder) as supervisor, psycopg.connect(postgres.start(supervisor).owner, autocommit=True) as role:
        assert _value(role, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
        assert _value(role, "SHOW fsync") == "on"
        assert _value(role, "SELECT count(*) >= 0 FROM pg_stat_statements") is True
        role.execute("CREATE ROLE narrow")
        role.execute("SET ROLE narrow")
        role.execute("RESET ROLE")
        role.execute("CREATE DATABASE test_another")


def test_data_of_before_there_were_two_roles_gets_the_second_one(folder: Path) -> None:
    with Supervisor(folder) as supervisor:
        url = postgres.start(supervisor).owner
        _remember(url, "kept")
        user = postgres._os_user(folder / "postgres")
        sockets = postgres._socket_folder(postgres._home(folder, user), user)
        port = int(psycopg.conninfo.conninfo_to_dict(url)["port"] or 0)
        with postgres._admin(sockets, port) as admin:
            admin.execute("DROP ROLE aiplatform_gateway")
            admin.execute("DROP ROLE aiplatform_app")
    (folder / "postgres-app.password").unlink()
    with Supervisor(folder) as supervisor:
        urls = postgres.start(supervisor)
        assert _remembered(urls.owner) == ["kept"]
        with psycopg.connect(urls.application) as role, pytest.raises(psycopg.errors.InsufficientPrivilege):
            role.execute("CREATE TABLE mine ()")


def test_a_stale_pid_file_that_names_a_stranger_is_no_obstacle(folder: Path) -> None:
    with Supervisor(folder) as supervisor:
        _remember(postgres.start(supervisor).owner, "kept")
    user = postgres._os_user(folder / "postgres")
    with subprocess.Popen(["sleep", "60"], cwd="/", **as_user(user)) as stranger:
        pid_file = folder / "postgres" / "postmaster.pid"
        pid_file.write_text(f"{stranger.pid}\n{folder / 'postgres'}\n1\n5432\n\n\n0 0\nready\n")
        shutil.chown(pid_file, user.uid if user else os.geteuid())
        with Supervisor(folder) as supervisor:
            assert _remembered(postgres.start(supervisor).owner) == ["kept"]
        assert stranger.poll() is None
        stranger.kill()


def test_a_lost_password_file_is_replaced(folder: Path) -> None:
    with Supervisor(folder) as supervisor:
        _remember(postgres.start(supervisor).owner, "kept")
    (folder / "postgres.password").unlink()
    with Supervisor(folder) as supervisor:
        assert _remembered(postgres.start(supervisor).owner) == ["kept"]
    assert stat.S_IMODE((folder / "postgres.password").stat().st_mode) == 0o600


def test_an_interrupted_first_start_is_begun_again(folder: Path) -> None:
    (folder / "postgres.new").mkdir()
    (folder / "postgres.new" / "PG_VERSION").write_text("18\n")
    (folder / "postgres").mkdir()
    with Supervisor(folder) as supervisor:
        assert _answers(postgres.start(supervisor).owner)


@pytest.mark.parametrize("lost", ["PG_VERSION", "global/pg_control", "base"])
def test_a_damaged_database_is_named_and_not_touched(folder: Path, lost: str) -> None:
    with Supervisor(folder) as supervisor:
        postgres.start(supervisor)
    lost_path = folder / "postgres" / lost
    shutil.rmtree(lost_path) if lost_path.is_dir() else lost_path.unlink()
    before = sorted(path.name for path in (folder / "postgres").iterdir())
    with Supervisor(folder) as supervisor, pytest.raises(StartFailed, match=rf"(?s){folder}/postgres.*backup.*delete"):
        postgres.start(supervisor)
    assert set(before) <= {path.name for path in (folder / "postgres").iterdir()} | {"postmaster.opts"}


@as_root
def test_below_a_closed_home_the_data_goes_where_the_server_can_reach_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    folder = home / "clone"
    folder.mkdir()
    for _ in range(2):
        with Supervisor(folder) as supervisor:
            _remember(postgres.start(supervisor).owner, "kept")
    with Supervisor(folder) as supervisor:
        assert _remembered(postgres.start(supervisor).owner) == ["kept", "kept"]
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    far = (folder / "postgres").resolve()
    assert home not in far.parents
    postgres.remove(folder)
    assert not far.parent.exists()
    (folder / "postgres").symlink_to(far)
    with Supervisor(folder) as supervisor, pytest.raises(StartFailed, match="is gone"):
        postgres.start(supervisor)


@as_root
def test_binaries_that_the_server_may_not_run_are_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = postgres._os_user(folder / "postgres")
    inside = "/site-packages/"
    real = postgres._run_as

    def refuse(user: object, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        if inside in str(argv[0]):
            return subprocess.CompletedProcess(argv, 126, "", "Permission denied")
        return real(user, *argv)  # type: ignore[arg-type]

    monkeypatch.setattr(postgres, "_run_as", refuse)
    assert postgres._binaries(folder, user).is_relative_to(folder)
    with Supervisor(folder) as supervisor:
        assert _answers(postgres.start(supervisor).owner)


def test_valkey_keeps_its_data_over_a_kill_and_a_restart(folder: Path) -> None:
    with Supervisor(folder) as supervisor:
        url = valkey.start(supervisor)
        with redis.Redis.from_url(url) as client:
            client.set("kept", "yes")
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        time.sleep(1.2)  # its log is written to disk every second
        _kill(supervisor, "valkey")
        _until(lambda: _redis_value(url) == b"yes")
    with Supervisor(folder) as supervisor:
        assert _redis_value(valkey.start(supervisor)) == b"yes"


def test_valkey_wants_its_password_and_no_command_line_shows_one(folder: Path) -> None:
    with Supervisor(folder) as supervisor:
        database = postgres.start(supervisor)
        assert _answers(database.application)
        urls = [database.owner, valkey.start(supervisor)]
        with redis.Redis.from_url(urls[1].replace("://:", "://:x")) as stranger, pytest.raises(redis.RedisError):
            stranger.ping()
        passwords = [(folder / f"{name}.password").read_text() for name in ("postgres", "postgres-app", "valkey")]
        lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
        assert any("valkey-server" in line for line in lines)
        assert not [line for line in lines if any(password in line for password in passwords)]


def _remember(url: str, text: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS memory (text text)")
        connection.execute("INSERT INTO memory VALUES (%s)", [text])


def _remembered(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT text FROM memory")]


def _value(connection: psycopg.Connection, query: LiteralString) -> object:
    row = connection.execute(query).fetchone()
    return row[0] if row else None


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _redis_value(url: str) -> object:
    with redis.Redis.from_url(url) as client:
        try:
            return client.get("kept")
        except redis.RedisError:
            return None


def _kill(supervisor: Supervisor, part: str) -> int:
    pid = supervisor.pids()[part][0]
    os.kill(pid, signal.SIGKILL)
    _until(lambda: supervisor.pids()[part] != [pid])
    return pid


def _until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
