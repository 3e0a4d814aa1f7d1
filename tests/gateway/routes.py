"""Several far ends as providers of one system, and what came of a call there."""

import uuid
from typing import Any

from tests.fakes.provider import FakeProvider
from tests.system import Customer, System

HELLO: Any = [{"role": "user", "content": "hello"}]


def provider(
    system: System, far_end: FakeProvider, *, usd: tuple[str, str] = ("3", "15"), models: str = "big-1"
) -> str:
    """A new provider of these models at that far end."""
    name = f"p-{uuid.uuid4().hex[:8]}"
    system.manage(
        "provider_set", name, "--wire", "openai", "--base-url", far_end.openai_url, "--key-env", "FAKE_KEY",
        "--models", models,
    )  # fmt: skip
    for model in models.split(","):
        system.manage("price_set", name, model, "--input", usd[0], "--output", usd[1])
    return name


def alias(system: System, customer: Customer, *steps: str) -> str:
    """A new name in the customer's environment for these steps."""
    name = f"alias-{uuid.uuid4().hex[:8]}"
    arguments = [text for step in steps for text in ("--step", step)]
    system.manage("route_set", name, "--tenant", customer.name, "--environment", "prod", *arguments)
    return name


def receipt(system: System, call: str) -> dict[str, Any]:
    return system.manage("call_show", call)


def clean(system: System) -> bool:
    return bool(system.manage("ledger_verify")["ok"])
