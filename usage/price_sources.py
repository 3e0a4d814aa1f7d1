"""What others say that models cost: genai-prices, and a second source to check it against. Both in our meters."""

import importlib.metadata
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, get_args

from aiplatform.lib.errors import ApiError
from aiplatform.lib.money import MILLION
from usage.pricebook import usual_per
from usage.pricing import STANDARD, Part
from usage.tariffs import plain

EXTRACT = Path(__file__).parent / "price_lists" / "second_source.json"
VENDORS = ("openai", "anthropic")


class BadSource(ApiError):
    """This file is no price list that can be read here."""


@dataclass(frozen=True, slots=True)
class Source:
    """A price list: its figures by (provider, model), and why some models cannot be ours."""

    name: str
    version: str
    parts: dict[tuple[str, str], list[Part]]
    left_out: dict[tuple[str, str], str]

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}"


# --- genai-prices -----------------------------------------------------------------------------------------------------
_THEIRS = {  # ours: theirs, the first one given
    "input": ("input_mtok",),
    "cache_read": ("cache_read_mtok",),
    "cache_write_5m": ("cache_write_5m_mtok", "cache_write_mtok"),
    "cache_write_1h": ("cache_write_1h_mtok", "cache_write_mtok"),
    "output": ("output_mtok",),
    "input_audio": ("input_audio_mtok",),
    "cache_audio_read": ("cache_audio_read_mtok",),
    "output_audio": ("output_audio_mtok",),
    "input_image": ("input_image_mtok",),
    "cache_image_read": ("cache_image_read_mtok",),
    "output_image": ("output_image_mtok",),
    "web_search": ("web_searches_kcount",),
    "file_search": ("storage_searches_kcount",),
}
# Models that are paid by another unit than tokens; one that goes in is ours to count, so it is enough.
_UNITS = {"input_mchars": ("input_characters", 1), "input_audio_hours": ("input_seconds", 3600)}
_KNOWN = {*_UNITS, "audio_hours", *(theirs for names in _THEIRS.values() for theirs in names)}
_ELSEWHERE = re.compile(r"realtime|live|translate|gpt-5[.\d]*-image|moderation")
_SPEAKS = re.compile(r"-tts\b")
_PAID_PER_CALL = re.compile(r"search|deep-research|computer-use")


def contexts(provider: str) -> dict[str, dict[str, str]]:
    """By which words genai-prices tells the variants of a vendor apart."""
    fast = {"service_tier": "fast"} if provider == "openai" else {"speed": "fast"}
    return {
        STANDARD: {},
        "batch": {"processing": "batch"},
        "flex": {"service_tier": "flex"},
        "priority": {"service_tier": "priority"},
        "fast": fast,
    }


def genai_prices(now: datetime) -> Source:
    """The prices of OpenAI's and Anthropic's models in the package that is installed."""
    found: dict[tuple[str, str], list[Part]] = {}
    left_out: dict[tuple[str, str], str] = {}
    for provider in _vendors():
        for name in sorted(_names(provider)):
            model = provider.find_model(name)
            if model is None or name.startswith("ft:"):  # fine-tuned models have names that no list can know
                continue
            reason = _reason(name, model, now)
            if reason:
                left_out[provider.id, name] = reason
            else:
                found[provider.id, name] = sorted(represented(provider.id, model, now))
    return Source("genai-prices", importlib.metadata.version("genai-prices"), found, left_out)


def represented(provider: str, model: Any, now: datetime) -> Iterator[Part]:
    """A model's figures of each variant that has figures of its own."""
    standard = _given(model.get_prices(now))
    for variant, context in contexts(provider).items():
        given = _given(model.get_prices(now, context))
        if variant == STANDARD or given != standard:
            yield from _parts(variant, given, speaks=bool(_SPEAKS.search(model.id)))


def _vendors() -> list[Any]:
    from genai_prices import data_snapshot  # noqa: PLC0415 - 40 MB that only an import needs

    return [provider for provider in data_snapshot.get_snapshot().providers if provider.id in VENDORS]


def _parts(variant: str, given: dict[str, Any], *, speaks: bool = False) -> Iterator[Part]:
    for key, (meter, of_it) in _UNITS.items():
        if key in given:
            yield Part(variant, meter, 0, given[key] / of_it, usual_per(meter))
    for meter, theirs in _THEIRS.items():
        price = next((given[key] for key in theirs if key in given), None)
        if isinstance(price, Decimal) and speaks and meter == "output":  # all that such a model puts out is sound
            yield Part(variant, "output_audio", 0, price, usual_per("output_audio"))
        elif isinstance(price, Decimal):
            yield Part(variant, meter, 0, price, usual_per(meter))
        elif price is not None:
            yield Part(variant, meter, 0, price.base, usual_per(meter))
            yield from (Part(variant, meter, tier.start, tier.price, usual_per(meter)) for tier in price.tiers)


def _given(prices: Any) -> dict[str, Any]:
    return {key: price for key, price in vars(prices).items() if price is not None}


def _reason(name: str, model: Any, now: datetime) -> str:
    """Why its price cannot be ours; empty where it can."""
    given = _given(model.get_prices(now))
    if _ELSEWHERE.search(name):
        return "not called by any endpoint here, or free"
    if _PAID_PER_CALL.search(name):
        return "has fees for each call that no usage tells"
    if odd := sorted(set(given) - _KNOWN):
        return f"has prices for {', '.join(odd)}"
    if any(not hasattr(each.constraint, "start_date") for each in _conditional(model)):
        return "its price depends on the time of day"
    return "" if given.keys() & {"input_mtok", *_UNITS} else "has no price for input"


def _conditional(model: Any) -> list[Any]:
    """Its prices that hold under a condition."""
    listed = model.prices if isinstance(model.prices, list) else []
    return [each for each in (*listed, *(model.price_variants or ())) if each.constraint]


def _names(provider: Any) -> set[str]:
    """The exact names that genai-prices knows, and the dated ones that the vendors' SDKs list."""
    from anthropic.types import Model  # noqa: PLC0415 - as above
    from openai.types import ChatModel  # noqa: PLC0415

    listed = ChatModel if provider.id == "openai" else Model
    return {
        *_literals(listed),
        *(model.id for model in provider.models),
        *(name for model in provider.models for name in _equals(model.match)),
    }


def _literals(annotation: Any) -> Iterator[str]:
    for part in get_args(annotation):
        if isinstance(part, str):
            yield part
        else:
            yield from _literals(part)


def _equals(clause: Any) -> Iterator[str]:
    if hasattr(clause, "equals"):
        yield clause.equals
    for part in getattr(clause, "or_", []):
        yield from _equals(part)


# --- the second source ------------------------------------------------------------------------------------------------
# Field names of litellm's `model_prices_and_context_window_backup.json`; each may end in `_above_NNNk_tokens` and in the
# name of a variant. A price is USD for one token.
_FIELDS = {
    "input_cost_per_token": "input",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write_5m",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "output_cost_per_token": "output",
    "input_cost_per_audio_token": "input_audio",
    "cache_read_input_audio_token_cost": "cache_audio_read",
    "output_cost_per_audio_token": "output_audio",
    "input_cost_per_image_token": "input_image",
    "cache_read_input_image_token_cost": "cache_image_read",
    "output_cost_per_image_token": "output_image",
}
_FIELD = re.compile(rf"({'|'.join(_FIELDS)})(?:_above_(\d+)k_tokens)?(?:_(batches|flex|priority))?")
_SUFFIXES = {None: STANDARD, "batches": "batch", "flex": "flex", "priority": "priority"}


@cache
def second_source() -> Source:
    """The extract that is committed with the code (see the README beside it)."""
    kept = json.loads(EXTRACT.read_text())
    parts = {
        (provider, model): [Part(variant, meter, tier, Decimal(usd), per) for variant, meter, tier, usd, per in figures]
        for provider, models in kept["models"].items()
        for model, figures in models.items()
    }
    return Source(kept["name"], kept["version"], parts, {})


def read_second_source(path: Path, name: str, version: str) -> Source:
    """OpenAI's and Anthropic's models in a file of litellm's format; raises BadSource."""
    try:
        listed = json.loads(path.read_text(), parse_float=Decimal)
        parts = {
            (entry["litellm_provider"], model): sorted(_listed(entry))
            for model, entry in listed.items()
            if entry.get("litellm_provider") in VENDORS
        }
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BadSource(f"{path.name} cannot be read as a price list: {error}") from error
    return Source(name, version, parts, {})


def extract(source: Source, names: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The figures of these models, as they are committed."""
    models: dict[str, dict[str, list[Any]]] = {}
    for provider, model in sorted(set(names) & source.parts.keys()):
        figures = [[*part[:3], plain(part.usd), part.per] for part in source.parts[provider, model]]
        models.setdefault(provider, {})[model] = figures
    return {"name": source.name, "version": source.version, "models": models}


def _listed(entry: dict[str, Any]) -> Iterator[Part]:
    for name, price in entry.items():
        found = _FIELD.fullmatch(name)
        if found and isinstance(price, (Decimal, int)):
            field, thousands, suffix = found.groups()
            yield Part(_SUFFIXES[suffix], _FIELDS[field], int(thousands or 0) * 1000, price * MILLION, int(MILLION))
    searches = set((entry.get("search_context_cost_per_query") or {}).values())
    if len(searches) == 1:
        yield Part(STANDARD, "web_search", 0, Decimal(searches.pop()) * 1000, 1000)
