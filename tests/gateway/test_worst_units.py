"""No call of the endpoints beside chat costs more than its hold: random requests, and what their providers may bill, over prices.

The provider's bill is made up here from the vendors' pages, at most what they allow, and read by the real readers.
"""

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx2
import pytest

from aiplatform.gateway import endpoints
from aiplatform.gateway.wires import Asked, Facts
from aiplatform.providers.base import Reading, Usage
from aiplatform.providers.endpoints import ENDPOINTS
from aiplatform.providers.registry import ADAPTERS
from tests.gateway.test_audio import sound
from usage.pricing import Part, Rates, Tariff, Version

NOW = datetime(2026, 11, 24, tzinfo=UTC)
TURNS = 300


@dataclass
class Play:
    """A request, its price, and the provider's answer as it may be at worst."""

    endpoint: str
    model: str
    body: bytes
    headers: dict[str, str]
    prices: dict[str, str]
    answer: bytes
    untold: dict[str, int] | None = None
    """What is billed though the answer does not tell."""


def embeddings(chance: random.Random) -> Play:
    """A token for each byte of each text, or for each number."""
    text = "".join(chance.choice('a\u00e9\u4e16\U0001f600\n"\\\x01') for _ in range(chance.randint(1, 60)))
    inputs: Any = chance.choice([text, [text, "b"], [7] * chance.randint(1, 50), [[1, 2], [30000]]])
    flat = [inputs] if isinstance(inputs, str) or isinstance(inputs[0], int) else inputs
    tokens = sum(len(one) if isinstance(one, list) else len(one.encode()) for one in flat)
    body = json.dumps({"model": "e", "input": inputs}, ensure_ascii=chance.random() < 0.5).encode()
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Play("embeddings", "e", body, {}, {"input": "0.13"}, json.dumps({"model": "e", "usage": usage}).encode())


def images(chance: random.Random) -> Play:
    """Output by the vendor's table, 100 tokens for each partial image, and pictures at high fidelity."""
    n, quality = chance.randint(1, 10), chance.choice(["low", "medium", "high"])
    size, at = chance.choice([("1024x1024", 0), ("1024x1536", 1), ("1536x1024", 1), ("auto", 1)])
    partial, pictures = chance.randint(0, 3), chance.randint(0, 3)
    table = {"low": (272, 408), "medium": (1056, 1584), "high": (4160, 6240)}
    made = n * (table[quality][at] + 100 * partial)
    prompt = "\u4e16" * chance.randint(1, 50)
    shown = pictures * (65 + 129 * 4 + 6240)
    fields: dict[str, Any] = {"model": "gpt-image-1", "prompt": prompt, "n": n, "quality": quality, "size": size,
                              "partial_images": partial, "stream": False}  # fmt: skip
    if pictures:
        form = {name: str(value).lower() if name == "stream" else str(value) for name, value in fields.items()}
        body, headers = as_form(form, [("image[]", ("a.png", b"\x89PNG"))] * pictures)
    else:
        body, headers = json.dumps(fields).encode(), {}
    given = len(prompt.encode()) + shown
    usage = {"input_tokens": given, "output_tokens": made, "total_tokens": given + made,
             "input_tokens_details": {"text_tokens": given - shown, "image_tokens": shown}}  # fmt: skip
    prices = {"input": "5", "output": "40", "input_image": "10"}
    answer = json.dumps({"data": [{}] * n, "usage": usage}).encode()
    return Play("images.edits" if pictures else "images", "gpt-image-1", body, headers, prices, answer)


def pieces(chance: random.Random) -> Play:
    """An image by the piece; its answer tells nothing."""
    size = chance.choice(["1024x1024", "1792x1024", "1024x1792"])
    body = json.dumps({"model": "dall-e-3", "prompt": "a", "n": chance.randint(1, 10), "size": size,
                       "quality": chance.choice(["standard", "hd"])}).encode()  # fmt: skip
    prices = {"image_1024": "40000", "image_wide": "80000", "image_hd_1024": "80000", "image_hd_wide": "120000"}
    return Play("images", "dall-e-3", body, {}, prices, b'{"data":[{"url":"x"}]}')


def speech(chance: random.Random) -> Play:
    """Read at four characters a second at most, or paid by the character."""
    said = "\u00e9" * chance.randint(1, 4096)
    speed = chance.choice([0.25, 1, 4])
    body = json.dumps({"model": "t", "input": said, "voice": "v", "speed": speed, "stream_format": "sse"}).encode()
    by_tokens = chance.random() < 0.5
    prices = {"input": "0.6", "output_audio": "12"} if by_tokens else {"input_characters": "15"}
    made = math.ceil(len(said) / 4 / speed * 20.8) + 20
    usage = {"input_tokens": len(said.encode()), "output_tokens": made, "total_tokens": len(said.encode()) + made}
    event = json.dumps({"type": "speech.audio.done", "usage": usage}).encode()
    if by_tokens:
        return Play("speech", "t", body, {}, prices, event)
    return Play("speech", "t", body, {}, prices, b"\xff\xfb sound", {"input_characters": len(said)})


def transcription(chance: random.Random) -> Play:
    """Ten tokens for each second, as documented, and as many words as nobody speaks; or by the second."""
    seconds = chance.uniform(0.2, 20)
    body, headers = as_form({"model": "w", "prompt": "\u4e16" * 20}, [("file", ("a.wav", sound(seconds)))])
    heard = math.ceil(seconds * 10)
    if chance.random() < 0.5:
        usage: dict[str, Any] = {"type": "duration", "seconds": math.ceil(seconds)}
        prices = {"input_seconds": "100"}
    else:
        text, made = 60, math.ceil(seconds * 5 * 4)
        usage = {"type": "tokens", "input_tokens": heard + text, "output_tokens": made, "total_tokens": heard + text + made,
                 "input_token_details": {"text_tokens": text, "audio_tokens": heard}}  # fmt: skip
        prices = {"input": "2.5", "input_audio": "6", "output": "10"}
    if chance.random() < 0.2:
        return Play("transcriptions", "w", body, headers, prices, b"said")
    return Play("translations", "w", body, headers, prices, json.dumps({"text": "x", "usage": usage}).encode())


@pytest.mark.parametrize("request_of", [embeddings, images, pieces, speech, transcription])
def test_no_settled_cost_is_above_its_hold(request_of: Callable[[random.Random], Play]) -> None:
    charged = 0
    for turn in range(TURNS):
        chance = random.Random(turn)
        play = request_of(chance)
        facts = read(play)
        rates = priced(play, chance)
        bound = rates.fitting(facts.bound)
        base_nano, output_pico = rates.bound(bound)
        assert output_pico == 0
        facts.bound = bound
        usage = usage_of(play, facts)
        # Each unit by itself, so that no wide bound of one hides a narrow one of another.
        assert all(units <= bound.meters[meter] for meter, units in usage.meters.items()), (turn, usage.meters)
        assert not play.untold or usage.meters == play.untold
        cost = rates.cost(usage)
        assert cost.charge_nano <= base_nano, (turn, play.endpoint)
        assert cost.marked == (), (turn, cost.marked)
        charged += cost.charge_nano
    assert charged > 0


def usage_of(play: Play, facts: Facts) -> Usage:
    """By the reader of the endpoint, or as admission counted it where the answer does not tell."""
    reader = ADAPTERS["openai"].reader(play.endpoint)
    if facts.streamed and play.answer.startswith(b"{"):
        reading = Reading()
        reader.read_event(reading, play.answer)
    else:
        reading = reader.read_whole(play.answer)
    return reading.usage or facts.likely


def read(play: Play) -> Facts:
    one = ENDPOINTS["openai", play.endpoint]
    return endpoints.read(Asked(one, play.body, httpx2.Headers(play.headers), {}, ""))


def priced(play: Play, chance: random.Random) -> Rates:
    """USD per million of each unit."""
    parts = [Part("standard", meter, 0, Decimal(usd), 1_000_000) for meter, usd in play.prices.items()]
    rates = Rates(Version(1, "p", play.model, NOW, None), parts)
    return rates.under(Tariff(1, chance.choice([-5000, 0, 333]))) if chance.random() < 0.3 else rates


def as_form(fields: dict[str, str], files: list[Any]) -> tuple[bytes, dict[str, str]]:
    """A form as the SDK's HTTP client writes it."""
    request = httpx2.Request("POST", "http://x.test/", data=fields, files=files)
    return request.read(), {"content-type": request.headers["content-type"]}
