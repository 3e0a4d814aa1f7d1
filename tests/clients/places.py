"""Where the clients live: virtual environments and a node_modules of their own, made from locked versions and kept.

They stay in .data/clients, named for the checksum of their lock, so that a second run installs nothing.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
KEPT = ROOT / ".data" / "clients"
OLDEST_NODE = 20


class CannotInstall(Exception):
    """A client is missing on this machine; the message says what and why."""


def python(group: str) -> Path:
    """The interpreter of the virtual environment of `python/<group>.txt`; raises CannotInstall."""
    lock = HERE / "python" / f"{group}.txt"
    place = KEPT / f"{group}-{_checksum(lock)}"
    interpreter = place / "bin" / "python"
    if not (place / "installed").exists():
        shutil.rmtree(place, ignore_errors=True)
        _run([sys.executable, "-m", "venv", "--without-pip", str(place)])
        try:
            _run([_uv(), "pip", "install", "--system-certs", "--python", str(interpreter), *_hashed(lock)])
        except CannotInstall:  # it knows nothing of pip's own settings
            _run([sys.executable, "-m", "pip", "--python", str(interpreter), "install", *_hashed(lock)])
        (place / "installed").touch()
    return interpreter


def node() -> Path:
    """The folder with `node_modules` and today's scripts; raises CannotInstall where Node is missing or too old."""
    npm = shutil.which("npm")
    if npm is None or not _node_is_new_enough():
        raise CannotInstall(f"Node {OLDEST_NODE} or newer with npm is not on this machine")
    lock = HERE / "node" / "package-lock.json"
    place = KEPT / f"node-{_checksum(lock)}"
    place.mkdir(parents=True, exist_ok=True)
    for one in (HERE / "node").iterdir():
        shutil.copy(one, place)
    if not (place / "installed").exists():
        _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=place)
        (place / "installed").touch()
    return place


def _checksum(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()[:12]


def _hashed(lock: Path) -> list[str]:
    return ["--quiet", "--require-hashes", "-r", str(lock)]


def _uv() -> str:
    return str(ROOT / ".venv" / "bin" / "uv")


def _node_is_new_enough() -> bool:
    try:
        version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return False
    return int(version.strip().removeprefix("v").split(".")[0]) >= OLDEST_NODE


def _run(command: list[str], cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=900)
    except OSError as error:
        raise CannotInstall(f"{command[0]}: {error}") from error
    if done.returncode:
        raise CannotInstall(f"{' '.join(command[:4])} …: {(done.stderr or done.stdout)[-600:]}")
