"""Failpoints: their names are one list, an armed one happens once, at its turn, and all others cost nothing."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aiplatform.lib import failpoints

ROOT = Path(__file__).resolve().parents[2]
CODE = [path for app in ("aiplatform", "tenants", "usage", "moderation") for path in (ROOT / app).rglob("*.py")]


def test_every_name_in_the_code_is_registered_and_every_registered_name_is_in_the_code() -> None:
    calls = [call for path in CODE for call in re.findall(r"failpoints\.reached\((.*)", path.read_text())]
    named = [re.match(r'"([a-z_.]+)"', call) for call in calls]
    assert all(named), "a name is a literal"
    assert {found[1] for found in named if found} == set(failpoints.NAMES)
    assert len(set(failpoints.NAMES)) == len(failpoints.NAMES)


@pytest.mark.parametrize(
    "given", ["nowhere:kill", "claim.before", "claim.before:explode", "claim.before:0:kill", "claim.before:1:2:kill"]
)
def test_what_means_nothing_is_refused_at_start(given: str) -> None:
    with pytest.raises(ValueError, match="FAILPOINT is NAME"):
        failpoints.read(given)


def test_a_point_happens_at_its_turn_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_armed", failpoints.read("claim.before:2:raise"))
    failpoints.reached("claim.before")
    failpoints.reached("claim.after")
    failpoints.reached("claim.before", [])
    with pytest.raises(failpoints.FailpointReached):
        failpoints.reached("claim.before", [1])
    failpoints.reached("claim.before")


def test_killed_means_sigkill_and_off_means_nothing() -> None:
    program = "import django; django.setup(); from aiplatform.lib import failpoints as f; f.reached('claim.before')"
    outcomes = [run(program, point).returncode for point in ("", "claim.after:kill", "claim.before:kill")]
    assert outcomes == [0, 0, -signal.SIGKILL]


def test_a_process_that_is_armed_says_so() -> None:
    program = "import django; django.setup(); from aiplatform.lib import failpoints; failpoints.warn()"
    assert "failpoint.armed" in run(program, "claim.after:kill").stdout
    assert run(program, "").stdout == ""


def run(program: str, point: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "FAILPOINT": point, "DJANGO_SETTINGS_MODULE": "aiplatform.settings", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_the_document_names_them_all_and_no_other() -> None:
    chapter = (ROOT / "docs/reliability.md").read_text().partition("## Failpoints")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z]+\.[a-z_]+)`", chapter)) - {"failpoint.armed"} == set(failpoints.NAMES)
