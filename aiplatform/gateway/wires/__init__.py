"""The wire formats that callers may speak, one file each."""

from aiplatform.gateway.wires.anthropic import AnthropicWire
from aiplatform.gateway.wires.base import Asked, BadRequest, Facts, Named, NotPriced, TooLarge, Wire, with_fields
from aiplatform.gateway.wires.openai import OpenAIWire

OPENAI: Wire = OpenAIWire()
ANTHROPIC: Wire = AnthropicWire()
WIRES: dict[str, Wire] = {wire.name: wire for wire in (OPENAI, ANTHROPIC)}

__all__ = [
    "ANTHROPIC",
    "OPENAI",
    "WIRES",
    "Asked",
    "BadRequest",
    "Facts",
    "Named",
    "NotPriced",
    "TooLarge",
    "Wire",
    "with_fields",
]
