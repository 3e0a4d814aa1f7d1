"""The documents say what the code does: settings, links, paths, commands and errors are compared with it."""

import ast
import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands

ROOT = Path(__file__).resolve().parents[1]
APPS = ("aiplatform", "tenants", "usage", "moderation")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text()
ENV_EXAMPLE = (ROOT / ".env.example").read_text()
REQUIRED = "required"
NO_CALLERS = {"no_data_folder"}  # what only commands raise, and no reply carries


def test_env_example_names_every_variable_of_the_settings_with_its_default() -> None:
    named = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", ENV_EXAMPLE, re.MULTILINE))
    for name, default in settings_variables().items():
        assert name in named, f"{name} is read in settings.py and missing in .env.example"
        if default is not None:
            assert named[name] == ("" if default == REQUIRED else default), name


def test_env_example_names_no_variable_that_nobody_reads() -> None:
    named = set(re.findall(r"^#?([A-Z_]+)=", ENV_EXAMPLE, re.MULTILINE))
    assert named == settings_variables().keys() | process_variables()


def test_what_is_required_is_set_in_env_example_and_nothing_else_is() -> None:
    required = {name for name, default in settings_variables().items() if default == REQUIRED}
    assert set(re.findall(r"^([A-Z_]+)=", ENV_EXAMPLE, re.MULTILINE)) == required


def test_operations_lists_every_optional_variable_with_its_default() -> None:
    table = re.findall(r"^\| `([A-Z_]+)` \| (.*?)\|", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    listed = {name: default.strip().strip("`") for name, default in table}
    optional = {name: default for name, default in settings_variables().items() if default != REQUIRED}
    assert listed.keys() == optional.keys()
    assert {name: listed[name] for name, default in optional.items() if default is not None} == {
        name: default for name, default in optional.items() if default is not None
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text())]
    relative = [link for link in links if link and "://" not in link]
    assert [link for link in relative if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|sql|md|svg))`", document.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text()
    assert set(re.findall(r"manage\.py ([a-z_]+)", text)) - get_commands().keys() == set()
    scripts = set(re.findall(r"(?<![\w./])((?:bin|\.ci)/[a-z]+)(?![\w./])", text))
    assert [name for name in sorted(scripts) if not os.access(ROOT / name, os.X_OK)] == []


def test_every_operators_command_is_in_the_readme() -> None:
    ours = {name for name, app in get_commands().items() if app in APPS}
    # What bin/stack and the demo run for themselves is no command of the operator's.
    own = {name for name in ours if name.endswith("_seed")}
    assert set(re.findall(r"^\| `manage\.py ([a-z_]+)", README, re.MULTILINE)) == ours - own


def test_the_readmes_errors_are_those_of_the_code() -> None:
    listed = {(int(status), code) for status, code in re.findall(r"^\| (\d{3}) \| `(\w+)` \|", README, re.MULTILINE)}
    assert listed == {(status, code) for status, code in api_errors() if code not in NO_CALLERS}


def settings_variables() -> dict[str, str | None]:
    """The variables that settings.py reads, each with its default as text, `required`, or None for a computed one."""
    found: dict[str, str | None] = {}
    for node in ast.walk(ast.parse((ROOT / "aiplatform/settings.py").read_text())):
        if not (isinstance(node, ast.Call) and re.fullmatch(r"env(\.\w+)?", ast.unparse(node.func))):
            continue
        if isinstance(node.args[0], ast.Constant):
            found[str(node.args[0].value)] = default_of(node)
    return found | dict.fromkeys(vendors_variables(), "")


def vendors_variables() -> Iterator[str]:
    """Those whose names settings.py puts together, for each vendor's prefix."""
    source = (ROOT / "aiplatform/settings.py").read_text()
    for prefix in re.findall(r'\("\w+", "([A-Z]+)", "https://', source):
        for suffix in re.findall(r'env\(f"{prefix}_(\w+)"', source):
            yield f"{prefix}_{suffix}"


def default_of(call: ast.Call) -> str | None:
    given = next((keyword.value for keyword in call.keywords if keyword.arg == "default"), None)
    if given is None:
        return REQUIRED
    return as_text(value_of(given))


def value_of(node: ast.expr) -> Any:
    """The value of a literal or of a product of literals; None for anything else."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return value_of(node.left) * value_of(node.right)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def as_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(value)
    return None if value is None else str(value)


def process_variables() -> set[str]:
    """What is read from the environment of a process before, or without, the settings."""
    patterns = {
        "aiplatform/serve.py": r'environ\.get\("([A-Z_]+)"',
        "aiplatform/stack.py": r'environ(?:, |\.get\()"([A-Z_]+)"',
        "bin/setup": r"\$\{([A-Z]+):-",
    }
    found = (re.findall(pattern, (ROOT / name).read_text()) for name, pattern in patterns.items())
    return set(chain.from_iterable(found)) - {"PATH"}


def api_errors() -> Iterator[tuple[int, str]]:
    """Status and code of every subclass of ApiError; those that set neither are the operator's, and like the first."""
    classes = list(chain.from_iterable(classes_of(path) for app in APPS for path in (ROOT / app).rglob("*.py")))
    assert len(classes) > 50
    family = {"ApiError": (400, "invalid_request")}
    waiting = [(name, bases, attributes) for name, bases, attributes in classes if name != "ApiError"]
    while True:
        theirs = [it for it in waiting if it[1] & family.keys()]
        if not theirs:
            return
        for name, bases, attributes in theirs:
            status, code = family[min(bases & family.keys())]
            family[name] = (attributes.get("status", status), attributes.get("code", code))
            yield family[name]
        waiting = [it for it in waiting if it not in theirs]


def classes_of(path: Path) -> Iterator[tuple[str, set[str], dict[str, Any]]]:
    """Each class of a file: its name, its bases' last names, and its attributes that are literals."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
            assigned = (it for it in node.body if isinstance(it, ast.Assign) and isinstance(it.targets[0], ast.Name))
            yield node.name, bases, {ast.unparse(it.targets[0]): value_of(it.value) for it in assigned}
