"""No call that is accepted can cost more than its hold: random calls and what providers may bill for them, over all prices.

What a provider bills is worked out here from the vendors' pages anew, in floats and one image at a time, and goes through the
real adapters as the JSON of an answer.
"""

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiplatform.gateway.wires import ANTHROPIC, OPENAI, Asked, Facts, responses
from aiplatform.lib.errors import ApiError
from aiplatform.providers.anthropic import Anthropic
from aiplatform.providers.endpoints import ENDPOINTS
from aiplatform.providers.openai import OpenAI
from aiplatform.providers.responses import Responses
from tests.gateway.pictures import FORMATS, encoded, mp3, picture, wav
from usage import price_sources
from usage.pricing import TOKEN_METERS, Bound, NotBounded, Part, Rates, Tariff, Version

NOW = datetime(2026, 11, 24, tzinfo=UTC)
DEFAULT_MAX_TOKENS = 1024


@dataclass
class Truth:
    """The most that a provider may bill for a request, and how."""

    text: int = 0
    image: int = 0
    audio: int = 0
    speaks: bool = False
    choices: int = 1
    served: list[str] = field(default_factory=lambda: ["standard"])


# --- the test -------------------------------------------------------------------------------------------------------


def test_no_settled_cost_is_above_its_hold_for_any_priced_model() -> None:
    settled = refused = 0
    for at, rates in enumerate(PRICED):
        for turn in range(25):
            charge, hold = play(random.Random(at * 1000 + turn), rates)
            if hold is None:
                refused += 1
                continue
            settled += 1
            assert charge <= hold, (rates.model, at * 1000 + turn)
    assert len(PRICED) > 100
    assert settled > 4 * refused > 0


@given(st.randoms(use_true_random=False), st.integers(0, 10**6))
@settings(max_examples=300)
def test_no_settled_cost_is_above_its_hold_for_any_price(chance: random.Random, seed: int) -> None:
    charge, hold = play(chance, any_price(random.Random(seed)))
    assert hold is None or charge <= hold


def test_no_response_costs_more_than_its_hold_however_often_it_was_continued() -> None:
    settled = refused = 0
    for at, rates in enumerate(PRICED):
        for turn in range(6):
            charge, hold = play_response(random.Random(at * 1000 + turn), rates)
            if hold is None:
                refused += 1
                continue
            settled += 1
            assert charge <= hold, (rates.model, at * 1000 + turn)
    assert settled > 2 * refused > 0  # each of up to three requests may be the one that is refused


@given(st.randoms(use_true_random=False), st.integers(0, 10**6))
@settings(max_examples=100)
def test_no_response_costs_more_than_its_hold_for_any_price(chance: random.Random, seed: int) -> None:
    charge, hold = play_response(chance, any_price(random.Random(seed)))
    assert hold is None or charge <= hold


def test_the_bound_is_no_guess_far_off() -> None:
    """Where the provider counts a token for each byte, what is held is little more than what is charged."""
    rates = next(one for one in PRICED if one.model == "gpt-4o")
    body = json.dumps(
        {"model": "gpt-4o", "messages": [{"role": "user", "content": "x" * 100_000}], "service_tier": "default"}
    )
    base, _ = rates.bound(OPENAI.read("chat", body.encode(), {}).bound)
    assert base < 1.01 * 100_000 * 2500


def test_images_and_sounds_count_towards_the_context_tier() -> None:
    parts = [Part("standard", meter, tier, Decimal(usd), 1_000_000) for meter, tier, usd in (
        ("input", 0, 1), ("input", 1000, 2), ("output", 0, 1), ("output", 1000, 3), ("input_audio", 0, 1), ("input_audio", 1000, 2)
    )]  # fmt: skip
    rates = Rates(Version(1, "any", "m", NOW, None), parts)
    for meter in ("input_image", "input_audio"):
        assert rates.bound(Bound(900, {meter: 100})) == (1000 * 1000, 10**6)
        assert rates.bound(Bound(900, {meter: 101})) == (1001 * 2000, 3 * 10**6)


def play(chance: random.Random, rates: Rates) -> tuple[int, int | None]:
    """A call's charge and its hold in nano-USD; no hold for one that is refused."""
    if chance.random() < 0.3:
        rates = rates.under(Tariff(1, chance.choice([-5000, 0, 1, 333, 2000])))
    wire = rates.provider if rates.provider in ("openai", "anthropic") else chance.choice(["openai", "anthropic"])
    ask, answer = (openai_request, openai_answer) if wire == "openai" else (anthropic_request, anthropic_answer)
    request, truth = ask(chance, rates)
    body = json.dumps(request, ensure_ascii=chance.random() < 0.5).encode()
    try:
        facts: Facts = (OPENAI if wire == "openai" else ANTHROPIC).read("", body, {})
        base_nano, output_pico = rates.bound(facts.bound)
    except NotBounded:
        return 0, None
    except ApiError as error:
        assert error.code == "model_not_priced", error.message
        return 0, None
    wanted = facts.max_tokens or DEFAULT_MAX_TOKENS
    granted = chance.choice([wanted, max(wanted // 3, 1)])
    hold = base_nano - (-output_pico * granted // 1000)
    reading = (OpenAI() if wire == "openai" else Anthropic()).read_whole(
        json.dumps(answer(chance, truth, granted)).encode()
    )
    assert reading.usage is not None
    return rates.cost(reading.usage).charge_nano, hold


# --- OpenAI: requests and what may be billed for them ---------------------------------------------------------------


def openai_request(chance: random.Random, rates: Rates) -> tuple[dict[str, Any], Truth]:
    truth = Truth(text=3)
    request: dict[str, Any] = {"model": rates.model, "messages": []}
    for _ in range(chance.randrange(1, 12)):
        request["messages"].append({"role": "user", "content": openai_content(chance, rates, truth)})
        truth.text += 7
    if chance.random() < 0.3:
        request["n"] = truth.choices = chance.randrange(1, 5)
    if chance.random() < 0.3:
        request["tools"] = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
        truth.text += 60
    if chance.random() < (0.5 if "output_audio" in priced(rates) else 0.02):
        request["modalities"] = chance.choice([["text"], ["text", "audio"], ["audio"]])
        truth.speaks = "audio" in request["modalities"]
    if chance.random() < 0.7:
        request[chance.choice(["max_tokens", "max_completion_tokens"])] = chance.choice([1, 16, 1000, 128_000])
    if chance.random() < 0.5:
        tiers = ["auto", "default", *sorted({"flex", "priority"} & priced(rates)), None]
        request["service_tier"] = chance.choice(tiers if chance.random() < 0.9 else ["flex", "priority", "fast"])
    tier = str(request.get("service_tier"))
    may = {"default": [], "flex": ["flex"], "priority": ["priority"], "fast": ["priority"]}.get(
        tier, ["flex", "priority"]
    )
    truth.served += [one for one in may if one in priced(rates)]
    return request, truth


def openai_content(chance: random.Random, rates: Rates, truth: Truth) -> Any:
    if chance.random() < 0.6:
        return words(chance, truth)
    hears = "input_audio" in priced(rates)
    parts: list[dict[str, Any]] = []
    for _ in range(chance.randrange(1, 4)):
        kind = chance.choice(
            ["text", "image", "image", "remote", "audio" if hears or chance.random() < 0.02 else "text"]
        )
        if kind == "text":
            parts.append({"type": "text", "text": words(chance, truth)})
        elif kind == "audio":
            seconds = chance.choice([0.3, 1, 4])
            form, data = chance.choice([("wav", wav(seconds)), ("mp3", mp3(seconds, chance.choice([8, 64])))])
            parts.append({"type": "input_audio", "input_audio": {"data": encoded(data), "format": form}})
            truth.audio += math.ceil(seconds * 10)
        else:
            size = a_size(chance)
            detail = chance.choice(
                ["low", "high", "auto", "original"] if kind == "image" else ["low", "high", "high", "auto"]
            )
            url = "https://x.test/picture"
            if kind == "image":
                url = f"data:image/png;base64,{encoded(picture(chance.choice(FORMATS), *size))}"
            parts.append({"type": "image_url", "image_url": {"url": url, "detail": detail}})
            truth.image += openai_image(chance, rates.model, size, detail)
    return parts


def openai_answer(chance: random.Random, truth: Truth, granted: int) -> dict[str, Any]:
    text, image, audio = (spent(chance, most) for most in (truth.text, truth.image, truth.audio))
    prompt = text + image + audio
    cached = chance.choice([0, spent(chance, prompt)])
    written = chance.choice([0, prompt - cached])
    out = spent(chance, granted * truth.choices)
    said = spent(chance, out) if truth.speaks else 0
    given = {"cached_tokens": cached, "cache_write_tokens": written, "audio_tokens": audio, "image_tokens": image}
    details = {name: count for name, count in given.items() if chance.random() < 0.8}
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": out,
        "prompt_tokens_details": chance.choice([details, details, None]),
        "completion_tokens_details": {"audio_tokens": said, "reasoning_tokens": spent(chance, out - said)},
    }
    served = {"standard": "default"}
    variant = chance.choice(truth.served)
    return {"choices": [], "usage": usage, "service_tier": served.get(variant, variant)}


# --- OpenAI's Responses, which may continue what was said before ------------------------------------------------------


@dataclass
class Earlier:
    """A stored object as the database gives it."""

    model: str
    figures: dict[str, Any]


def play_response(chance: random.Random, rates: Rates) -> tuple[int, int | None]:
    """The charge and the hold of the last of some responses, each of which continues the one before it."""
    if chance.random() < 0.3:
        rates = rates.under(Tariff(1, chance.choice([-5000, 0, 1, 333, 2000])))
    earlier, charge, hold = None, 0, None
    before = Truth()
    for _ in range(chance.randrange(1, 4)):
        request, truth = response_request(chance, rates)
        if earlier is not None:
            request["previous_response_id"] = "resp_1"
        body = json.dumps(request, ensure_ascii=chance.random() < 0.5).encode()
        try:
            facts = responses.read(Asked(ENDPOINTS["openai", "responses"], body, {}, {}, ""))
            facts.objects = [earlier] if earlier else []
            responses.bound_earlier(facts)
            base_nano, output_pico = rates.bound(facts.bound)
        except ApiError as error:
            assert error.code == "model_not_priced", error.message
            return 0, None
        wanted = facts.max_tokens or DEFAULT_MAX_TOKENS
        granted = chance.choice([wanted, max(wanted // 3, 1)])
        hold = base_nano - (-output_pico * granted // 1000)
        # What was said before may be billed as whatever it was made of, and all that was said is text now.
        truth.text, truth.image, truth.audio = (
            truth.text + before.text, truth.image + before.image, truth.audio + before.audio
        )  # fmt: skip
        answer = response_answer(chance, truth, granted)
        reading = Responses().read_whole(json.dumps(answer).encode())
        assert reading.usage is not None
        charge = rates.cost(reading.usage).charge_nano
        if charge > hold:
            break
        earlier = Earlier(rates.model, reading.figures | facts.figures)
        usage = answer["usage"]
        image, audio = (min(part, usage["input_tokens"]) for part in (truth.image, truth.audio))
        before = Truth(
            text=max(usage["input_tokens"] - image - audio, 0) + usage["output_tokens"], image=image, audio=audio
        )
        if before.text + image + audio > usage["input_tokens"] + usage["output_tokens"]:
            before.image = before.audio = 0
            before.text = usage["input_tokens"] + usage["output_tokens"]
    return charge, hold


def response_request(chance: random.Random, rates: Rates) -> tuple[dict[str, Any], Truth]:
    """A chat request in the words of Responses."""
    chat, truth = openai_request(chance, rates)
    truth.choices = 1
    for name in ("n", "modalities", "max_tokens", "max_completion_tokens"):
        chat.pop(name, None)
    truth.speaks = False
    items: list[dict[str, Any]] = [
        {"role": "user", "content": parts_of(one["content"])} for one in chat.pop("messages")
    ]
    if chance.random() < 0.3:
        items.append({"type": "function_call_output", "call_id": "c", "output": words(chance, truth)})
        truth.text += 7
    if chance.random() < 0.3:
        chat["instructions"] = words(chance, truth)
    if chance.random() < 0.7:
        chat["max_output_tokens"] = chance.choice([1, 16, 1000, 128_000])
    return chat | {"input": items}, truth


def parts_of(content: Any) -> Any:
    """The parts of a message under the names that Responses has for them."""
    if isinstance(content, str):
        return content
    found = []
    for part in content:
        if part["type"] == "image_url":
            image = part["image_url"]
            found.append({"type": "input_image", "image_url": image["url"], "detail": image["detail"]})
        else:
            found.append(part | ({"type": "input_text"} if part["type"] == "text" else {}))
    return found


def response_answer(chance: random.Random, truth: Truth, granted: int) -> dict[str, Any]:
    chat = openai_answer(chance, truth, granted)
    usage = chat["usage"]
    return {
        "id": "resp_1",
        "status": "completed",
        "service_tier": chat["service_tier"],
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens_details": usage["completion_tokens_details"],
        },
    }


# --- Anthropic: requests and what may be billed for them ------------------------------------------------------------


def anthropic_request(chance: random.Random, rates: Rates) -> tuple[dict[str, Any], Truth]:
    truth = Truth(text=10)
    request: dict[str, Any] = {
        "model": rates.model,
        "max_tokens": chance.choice([1, 16, 1000, 128_000]),
        "messages": [],
    }
    for _ in range(chance.randrange(1, 12)):
        request["messages"].append({"role": "user", "content": anthropic_content(chance, rates.model, truth)})
        truth.text += 7
    if chance.random() < 0.3:
        request["system"] = words(chance, truth)
    if chance.random() < 0.3:
        request["tools"] = [{"name": "f", "input_schema": {"type": "object"}}]
        truth.text += 700  # the greatest system prompt for tools that the page names, and the tool
        if chance.random() < 0.5:
            request["tools"] += [
                {"type": "bash_20250124", "name": "bash"},
                {"type": "text_editor_20250728", "name": "e"},
            ]
            truth.text += 245 + 700
    if chance.random() < 0.2:
        request["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    if chance.random() < 0.4:
        request["service_tier"] = chance.choice(["auto", "standard_only"])
    truth.served += ["priority"] if request.get("service_tier") != "standard_only" else []
    if chance.random() < 0.2:
        request["speed"] = chance.choice(["standard", "fast"] if "fast" in priced(rates) else ["standard"])
        truth.served += ["fast"] if request["speed"] == "fast" else []
    return request, truth


def anthropic_content(chance: random.Random, model: str, truth: Truth) -> Any:
    if chance.random() < 0.5:
        return words(chance, truth)
    blocks: list[dict[str, Any]] = []
    for _ in range(chance.randrange(1, 4)):
        kind = chance.choice(["text", "image", "remote", "result", "document"])
        if kind == "text":
            blocks.append(
                {"type": "text", "text": words(chance, truth), "cache_control": {"type": "ephemeral", "ttl": "1h"}}
            )
        elif kind == "document":
            blocks.append({"type": "document", "source": {"type": "text", "data": words(chance, truth)}})
        else:
            size = a_size(chance)
            source = {"type": "url", "url": "https://x.test/picture"}
            if kind != "remote":
                data = encoded(picture(chance.choice(FORMATS), *size))
                source = {"type": "base64", "media_type": "image/png", "data": data}
            block = {"type": "image", "source": source}
            blocks.append(
                {"type": "tool_result", "tool_use_id": "t", "content": [block]} if kind == "result" else block
            )
            truth.image += anthropic_image(model, size)
            truth.text += 4
    return blocks


def anthropic_answer(chance: random.Random, truth: Truth, granted: int) -> dict[str, Any]:
    total = spent(chance, truth.text + truth.image)
    read = chance.choice([0, spent(chance, total)])
    written = chance.choice([0, total - read])
    hour = chance.choice([0, spent(chance, written), written])
    usage = {
        "input_tokens": total - read - written,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "cache_creation": {"ephemeral_5m_input_tokens": written - hour, "ephemeral_1h_input_tokens": hour},
        "output_tokens": spent(chance, granted),
    }
    variant = chance.choice(truth.served)
    usage |= {"speed": "fast"} if variant == "fast" else {"service_tier": variant}
    return {"content": [], "usage": usage}


# --- what both share ------------------------------------------------------------------------------------------------


def words(chance: random.Random, truth: Truth) -> str:
    """Text of which the provider makes a token of each byte."""
    text = "".join(chance.choices(["a", "é", "漢", "🙂", "\n", '"'], k=chance.choice([0, 1, 1, 60, 900])))
    truth.text += len(text.encode())
    return text


def priced(rates: Rates) -> set[str]:
    return {name for part in rates.parts for name in (part.meter, part.variant)}


def spent(chance: random.Random, most: int) -> int:
    """All of it, more often than not."""
    return most if chance.random() < 0.6 else chance.randint(0, most)


def a_size(chance: random.Random) -> tuple[int, int]:
    side = chance.choice([64, 700, 2000, 8000])
    return chance.randint(1, side), chance.randint(1, chance.choice([side, 8000]))


def fitted(size: tuple[int, int], edge: float) -> tuple[float, float]:
    scale = min(1.0, edge / max(size))
    return size[0] * scale, size[1] * scale


def tiled(base: int, tile: int) -> Callable[[tuple[int, int], str], int]:
    def tokens(size: tuple[int, int], detail: str) -> int:
        if detail == "low":
            return base
        width, height = fitted(size, 2048)
        scale = min(1.0, 768 / min(width, height))
        return base + tile * math.ceil(width * scale / 512 - 1e-9) * math.ceil(height * scale / 512 - 1e-9)

    return tokens


def patched(factor: float, high: int, other: int | None) -> Callable[[tuple[int, int], str], int]:
    def tokens(size: tuple[int, int], detail: str) -> int:
        if detail == "low":
            return math.ceil(256 * factor)
        width, height = size
        patches = math.ceil(width / 32) * math.ceil(height / 32)
        most = high if detail == "high" else other
        return math.ceil((patches if most is None else min(patches, most)) * factor)

    return tokens


OPENAI_RULES = {
    "gpt-4o-mini": tiled(2833, 5667),
    "gpt-4o": tiled(85, 170),
    "gpt-4.1-mini": patched(1.62, 1536, 1536),
    "gpt-4.1-nano": patched(2.46, 1536, 1536),
    "gpt-4.1": tiled(85, 170),
    "o1": tiled(75, 150),
    "o3": tiled(75, 150),
    "o4-mini": patched(1.72, 1536, 1536),
    "gpt-5.4-mini": patched(1.62, 1536, 1536),
    "gpt-5.4-nano": patched(2.46, 1536, 1536),
    "gpt-5.4": patched(1.2, 2500, 10_000),
    "gpt-5.5": patched(1.2, 2500, 10_000),
    "gpt-5.6": patched(1.2, 2500, None),
    "gpt-6.1": patched(1.2, 2500, None),
    "gpt-6": patched(1.2, 2500, None),
    "gpt-5-mini": patched(1.62, 1536, 1536),
    "gpt-5-nano": patched(2.46, 1536, 1536),
    "gpt-5.1-codex-mini": patched(1.62, 1536, 1536),
    "gpt-5.1": tiled(70, 140),
    "gpt-5.2": patched(1.2, 1536, 1536),
    "gpt-5.3": patched(1.2, 1536, 1536),
    "gpt-5": tiled(70, 140),
    "gpt-4": tiled(85, 170),
    "chatgpt": tiled(85, 170),
}


def openai_image(chance: random.Random, model: str, size: tuple[int, int], detail: str) -> int:
    rule = next((rule for name, rule in OPENAI_RULES.items() if model.startswith(name)), None)
    return (rule or chance.choice(list(OPENAI_RULES.values())))(size, detail)


def anthropic_image(model: str, size: tuple[int, int]) -> int:
    new = (
        any(word in model for word in ("4-7", "4-8", "-5", "fable", "mythos"))
        and "4-5" not in model
        and "3-5" not in model
    )
    edge, most = (2576, 4784) if new else (1568, 1600)
    width, height = fitted(size, edge)
    return min(most, math.ceil(width / 28 - 1e-9) * math.ceil(height / 28 - 1e-9))


def any_price(chance: random.Random) -> Rates:
    """A price as no vendor has one: any meter, tier and variant may be the dearest."""
    meters = ["input", "output", *chance.sample(TOKEN_METERS, k=chance.randrange(len(TOKEN_METERS)))]
    parts = {
        (variant, meter, tier): Part(variant, meter, tier, Decimal(chance.randint(0, 10**7)) / 10**4, 1_000_000)
        for variant in ("standard", *chance.sample(("flex", "priority", "fast"), k=chance.randrange(4)))
        for meter in meters
        for tier in (0, *chance.sample((300, 1000, 5000), k=chance.randrange(3)))
    }
    model = chance.choice(
        ["gpt-4o", "gpt-4o-mini", "gpt-6-sol", "gpt-5.5", "o4-mini", "claude-opus-5", "claude-haiku-4-5", "other"]
    )
    return Rates(Version(1, "any", model, NOW, None), parts.values())


IMPORTED = price_sources.genai_prices(NOW).parts
PRICED = [Rates(Version(1, *name, NOW, None), parts) for name, parts in sorted(IMPORTED.items())]


@pytest.mark.parametrize(
    ("model", "size", "detail", "billed"),
    [
        ("gpt-6-astra", (1024, 1024), "auto", 1229),
        ("gpt-6-astra", (4032, 3024), "auto", 14_364),
        ("gpt-6-astra", (4032, 3024), "high", 2942),
        ("gpt-5.5", (1920, 1080), "auto", 2448),
        ("gpt-5.5", (4032, 3024), "auto", 11_868),
        ("gpt-4o", (1024, 1024), "high", 765),
        ("gpt-4o", (2048, 4096), "high", 1105),
        ("gpt-4o", (4096, 8192), "low", 85),
        ("gpt-4o-mini", (1024, 1024), "high", 25_501),
        ("gpt-4.1-nano", (1800, 2400), "high", 3572),
    ],
)
def test_an_openai_image_is_held_at_what_was_billed_and_little_more(
    model: str, size: tuple[int, int], detail: str, billed: int
) -> None:
    url = f"data:image/png;base64,{encoded(picture('png', *size))}"
    part = {"type": "image_url", "image_url": {"url": url, "detail": detail}}
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": [part]}]}).encode()
    assert billed <= OPENAI.read("chat", body, {}).bound.meters["input_image"] <= 1.06 * billed


@pytest.mark.parametrize(
    ("model", "size", "billed"),
    [
        ("claude-haiku-4-5", (1024, 1024), 1369),
        ("claude-haiku-4-5", (4032, 3024), 1596),
        ("claude-opus-5-5", (1920, 1080), 2691),
        ("claude-opus-5-5", (3840, 2160), 4784),
        ("claude-sonnet-4-20250514", (8000, 8000), 1568),
    ],
)
def test_an_anthropic_image_is_held_at_what_was_billed_and_little_more(
    model: str, size: tuple[int, int], billed: int
) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": encoded(picture("png", *size))}
    content = [{"type": "image", "source": source}]
    body = json.dumps({"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": content}]}).encode()
    assert billed <= ANTHROPIC.read("messages", body, {}).bound.meters["input_image"] <= 1.06 * billed
