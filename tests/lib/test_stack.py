"""The whole system on one machine, with a small stand-in for the product: what starts it knows only its Procfile."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from aiplatform.lib.embedded import postgres
from aiplatform.lib.supervisor import AlreadyRunning, Program, StartFailed, is_alive
from aiplatform.stack import PARTS, Stack, main

ROOT = Path(__file__).parents[2]
BARE = {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "REDIS_URL", "HOST", "PORT"}}
# For what is not about the servers: the stand-in for the product never connects to them.
GIVEN = {**BARE, "DATABASE_URL": "postgresql://given/database", "REDIS_URL": "redis://given/0"}

PRODUCT = {
    "Procfile": """\
# a comment
release: python manage.py migrate
web: python web.py
worker: python worker.py "$INSTANCE"
beat: sleep 600
""",
    "manage.py": """\
import json, os, sys
assert os.environ["DATABASE_URL"] and os.environ["REDIS_URL"]
print("a line of chatter")
if sys.argv[1] == "stack_seed":
    print(json.dumps({"admin_key": "key-of-the-admin", "tenant": "acme"}))
""",
    "web.py": """\
import http.server, os, socket
class Server(http.server.ThreadingHTTPServer):
    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{os.environ['INSTANCE']} {os.environ.get('SETTING')}".encode())
    def log_message(self, *_):
        pass
Server((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
""",
    "worker.py": """\
import os, pathlib, sys, time
pathlib.Path(os.environ["DATA_DIR"], "run", f"worker-{sys.argv[1]}.ready").touch()
time.sleep(600)
""",
}


@pytest.fixture
def data() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)
    yield folder
    postgres.remove(folder)
    shutil.rmtree(folder)


@pytest.fixture
def product(tmp_path: Path) -> Path:
    for name, text in PRODUCT.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_whole_system_starts_says_where_it_is_and_leaves_nothing(product: Path) -> None:
    with Stack(root=product, environ={**BARE, "WEB_PROCESSES": "2", "SETTING": "seen"}, workers=2) as stack:
        facts = stack.facts
        assert {part: len(pids) for part, pids in facts["pids"].items()} == {
            "postgres": 1, "valkey": 1, "web": 2, "worker": 2, "beat": 1,
        }  # fmt: skip
        assert facts["admin_key"] == "key-of-the-admin"
        assert facts["tenant"] == "acme"
        assert {_get(facts["base_url"]) for _ in range(40)} == {"1 seen", "2 seen"}
        assert stack.command_env["AIPLATFORM_ADMIN_KEY"] == "key-of-the-admin"
        folder = Path(facts["data_dir"])
        assert f"DATABASE_URL={facts['database_url']}\n" in (folder / "stack.env").read_text()
        assert (folder / "stack.env").stat().st_mode & 0o077 == 0
        processes = [psutil.Process(pid) for pids in facts["pids"].values() for pid in pids]
    assert not [process for process in processes if is_alive(process)]
    assert not folder.exists()


def test_what_is_killed_comes_back_where_it_was(product: Path, data: Path) -> None:
    with Stack(root=product, data=data, environ=BARE) as stack:
        urls = {name: stack.facts[name] for name in ("base_url", "database_url", "redis_url")}
        for part in PARTS:
            (killed,) = stack.facts["pids"][part]
            os.kill(killed, signal.SIGKILL)
            _until(lambda part=part, killed=killed: _written(data)["pids"][part] != [killed])  # type: ignore[misc]
            _until(lambda: _works(stack))
        assert stack.facts["pids"] == _written(data)["pids"]
        assert {name: stack.facts[name] for name in urls} == urls


def test_a_program_that_keeps_dying_is_tried_again_ever_more_slowly(data: Path) -> None:
    with Stack(data=data, parts=["valkey"], environ=GIVEN) as stack:
        count = data / "count"
        argv = ["sh", "-c", f'echo >>"{count}"; sleep 0.2; exit 3']
        stack.add(Program(name="mayfly", part="mayfly", argv=argv, env=BARE))
        time.sleep(3)
        assert 3 <= len(count.read_text().splitlines()) <= 6
        assert "mayfly" in stack.facts["pids"]


def test_servers_given_by_url_are_used_and_not_started(product: Path) -> None:
    with Stack(root=product, environ=GIVEN) as stack:
        assert stack.facts["pids"]["postgres"] == stack.facts["pids"]["valkey"] == []
        assert stack.env["DATABASE_URL"] == stack.facts["database_url"] == "postgresql://given/database"
        assert stack.env["REDIS_URL"] == stack.facts["redis_url"] == "redis://given/0"


def test_a_second_start_on_the_same_data_is_told_where_the_first_one_is(product: Path, data: Path) -> None:
    with (
        Stack(root=product, data=data, environ=GIVEN) as first,
        pytest.raises(AlreadyRunning, match=first.facts["base_url"]),
        Stack(root=product, data=data, environ=GIVEN),
    ):
        pass


def test_a_port_in_use_is_named(product: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(StartFailed, match=rf"127.0.0.1:{port} .*--port"),
            Stack(root=product, port=port, environ=GIVEN),
        ):
            pass


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("manage.py", "raise SystemExit('the migration is broken')", "(?s)release failed.*the migration is broken"),
        ("web.py", "raise SystemExit('no settings')", "(?s)web-1 ended with exit code 1.*no settings"),
    ],
)
def test_a_part_that_cannot_start_is_named_with_the_end_of_its_log(
    product: Path, file: str, text: str, message: str
) -> None:
    (product / file).write_text(text)
    with pytest.raises(StartFailed, match=message), Stack(root=product, environ=GIVEN):
        pass


def test_the_command_gets_the_urls_and_its_exit_code_is_ours() -> None:
    look = "import os, psycopg; psycopg.connect(os.environ['DATABASE_URL']); raise SystemExit(7)"
    done = _bin_stack("--json", "--parts", "postgres,valkey", "--", "python", "-c", look)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 7
    assert lines[1] == {**lines[0], "exit_code": 7}
    assert not done.stderr


def test_quiet_leaves_the_word_to_the_command() -> None:
    done = _bin_stack("--quiet", "--parts", "valkey", "--", "echo", "done")
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_killed_supervisor_leaves_servers_that_the_next_start_stops(data: Path) -> None:
    with _live(data) as supervisor:
        first = _written(data)
        with psycopg.connect(first["database_owner_url"]) as connection:
            connection.execute("CREATE TABLE kept ()")
        supervisor.kill()
        supervisor.wait()
    orphans = [psutil.Process(first["pids"][part][0]) for part in ("postgres", "valkey")]
    assert all(is_alive(orphan) for orphan in orphans)
    with (
        Stack(data=data, parts=["postgres", "valkey"], environ=BARE) as stack,
        psycopg.connect(stack.facts["database_owner_url"]) as connection,
    ):
        connection.execute("SELECT FROM kept")
        assert not any(is_alive(orphan) for orphan in orphans)


def test_servers_of_a_killed_run_are_found_without_its_record(data: Path) -> None:
    with _live(data) as supervisor:
        orphans = [psutil.Process(pid) for pids in _written(data)["pids"].values() for pid in pids]
        supervisor.kill()
        supervisor.wait()
    shutil.rmtree(data / "run")
    with Stack(data=data, parts=["postgres", "valkey"], environ=BARE) as stack:
        psycopg.connect(stack.facts["database_url"]).close()
        assert not any(is_alive(orphan) for orphan in orphans)


def test_what_a_killed_run_left_in_a_temporary_folder_goes_with_the_next(tmp_path: Path) -> None:
    environ = {**BARE, "TMPDIR": str(tmp_path)}
    with _live(None, "valkey", environ) as supervisor:
        (abandoned,) = tmp_path.iterdir()
        server = psutil.Process(_written(abandoned)["pids"]["valkey"][0])
        _bin_stack("--quiet", "--parts", "valkey", "--", "true", environ=environ)
        assert is_alive(server)  # it is in use
        supervisor.kill()
        supervisor.wait()
    _bin_stack("--quiet", "--parts", "valkey", "--", "true", environ=environ)
    assert not is_alive(server)
    assert not list(tmp_path.iterdir())


def test_extra_programs_run_before_the_product_does(product: Path) -> None:
    marker = product / "provider"
    provider = Program(
        name="provider",
        part="provider",
        argv=["sh", "-c", f"touch {marker}; exec sleep 600"],
        env=BARE,
        is_ready=lambda _pid: marker.exists(),
    )
    (product / "manage.py").write_text(f"open({str(marker)!r})\n{PRODUCT['manage.py']}")
    with Stack(root=product, environ=GIVEN, extra=[provider]) as stack:
        assert len(stack.facts["pids"]["provider"]) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(data: Path, number: signal.Signals) -> None:
    with _live(data) as supervisor:
        pids = [pid for pids in _written(data)["pids"].values() for pid in pids]
        supervisor.send_signal(number)
        assert supervisor.wait(20) == 0
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert not (data / "stack.env").exists()


def test_a_folder_that_cannot_be_used_is_said_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    try:
        assert main(["--parts", "valkey", "--data", str(tmp_path / "file" / "data")]) == 1
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), before, strict=True):
            signal.signal(number, handler)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Not a directory" in said


def _bin_stack(*arguments: str, environ: Mapping[str, str] = BARE) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "aiplatform.stack", *arguments]
    return subprocess.run(argv, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


class _live:  # noqa: N801 - reads as a verb
    """A supervisor in a process of its own, to be hurt."""

    def __init__(self, data: Path | None, parts: str = "postgres,valkey", environ: Mapping[str, str] = BARE) -> None:
        where = ["--data", str(data)] if data else []
        argv = [sys.executable, "-m", "aiplatform.stack", "--json", "--parts", parts, *where]
        self.process = subprocess.Popen(argv, env=environ, cwd=ROOT, stdout=subprocess.PIPE)

    def __enter__(self) -> subprocess.Popen[bytes]:
        assert self.process.stdout
        assert json.loads(self.process.stdout.readline())
        return self.process

    def __exit__(self, *_exc: object) -> None:
        assert self.process.stdout
        self.process.stdout.close()
        self.process.terminate()
        self.process.wait(20)


def _written(data: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((data / "run" / "stack.json").read_text())
    return facts


def _works(stack: Stack) -> bool:
    try:
        _get(stack.facts["base_url"])
        psycopg.connect(stack.facts["database_url"], connect_timeout=2).close()
    except (OSError, psycopg.OperationalError):
        return False
    return True


def _get(base_url: str) -> str:
    with urllib.request.urlopen(base_url + "/healthz", timeout=5) as reply:  # noqa: S310 - our own address
        return str(reply.read().decode())


def _until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
