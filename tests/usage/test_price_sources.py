"""Our engine and genai-prices say the same of every model that is imported, for whatever was used."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import genai_prices
import pytest
from genai_prices import data_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from aiplatform.providers.base import Usage
from usage import price_sources
from usage.pricing import FEE_METERS, RARE_INPUT_METERS, STANDARD, VARIANTS, Bound, NotBounded, Part, Rates, Version

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SOURCE = price_sources.genai_prices(NOW)
# genai-prices counts inclusively: audio and cached tokens are a part of all input tokens. Ours are disjoint.
MODELS = {
    (provider.id, model.id): (provider, model)
    for provider in data_snapshot.get_snapshot().providers
    if provider.id in price_sources.VENDORS
    for model in provider.models
}


BY_ANOTHER_UNIT = {"input_mchars", "input_audio_hours", "audio_hours"}


def rates_of(provider: str, model: str, parts: list[Part]) -> Rates:
    return Rates(Version(1, provider, model, NOW, None), parts)


def every_variant() -> Iterator[tuple[Any, Any, Rates, str]]:
    """All that is imported, and what is not called by chat but has a price in our meters, too."""
    for (provider_id, model_id), (provider, model) in MODELS.items():
        given_ = {key for key, price in vars(model.get_prices(NOW)).items() if price is not None}
        if not given_ or not given_ <= price_sources._KNOWN - BY_ANOTHER_UNIT or "-tts" in model_id:
            continue
        parts = list(price_sources.represented(provider_id, model, NOW))
        rates = rates_of(provider_id, model_id, parts)
        for variant in sorted({part.variant for part in parts}, key=VARIANTS.index):
            yield provider, model, rates, variant


CASES = list(every_variant())


def test_what_is_compared_covers_what_is_imported() -> None:
    compared = {(provider.id, model.id) for provider, model, _, _ in CASES}
    imported = {
        (provider, found.id)
        for provider, name in SOURCE.parts
        if (found := MODELS_BY_NAME[provider].find_model(name)) is not None
    }
    assert {name for name in imported - compared if not re.search("tts|whisper|transcribe", name[1])} == set()
    assert len(imported) > 90
    assert len({variant for *_, variant in CASES}) == len(VARIANTS)
    assert sum(any(part.tier_from for part in rates.parts) for _, _, rates, _ in CASES) > 30


MODELS_BY_NAME = {provider.id: provider for provider, _ in MODELS.values()}


@st.composite
def usages(draw: st.DrawFn, rates: Rates, variant: str) -> Usage:
    """Of the meters that have a price, with inputs around each tier's threshold."""
    priced = {part.meter for part in rates.parts if part.variant in {variant, STANDARD}}
    own = {part.meter for part in rates.parts if part.variant == variant}
    tokens = st.integers(0, 400_000)
    usage = Usage(output=draw(tokens) if "output" in own else 0, variant=variant)
    for meter in ("cache_read", "cache_write_5m", "cache_write_1h"):
        setattr(usage, meter, draw(st.integers(0, 90_000)))
    for meter in sorted(own & {*RARE_INPUT_METERS, "output_audio", "output_image"}):
        usage.meters[meter] = draw(st.integers(0, 50_000))
    for meter in sorted(priced & set(FEE_METERS)):
        usage.meters[meter] = draw(st.integers(0, 40))
    rest = total(usage)
    thresholds = sorted({part.tier_from for part in rates.parts if part.tier_from})
    near = [threshold + by - rest for threshold in thresholds for by in (-1, 0, 1)]
    usage.input = max(0, draw(st.one_of(tokens, st.sampled_from(near)) if near else tokens))
    return usage


def total(usage: Usage) -> int:
    rare = sum(count for meter, count in usage.meters.items() if meter in RARE_INPUT_METERS)
    return usage.input + usage.cache_read + usage.cache_write_5m + usage.cache_write_1h + rare


def theirs(usage: Usage) -> genai_prices.Usage:
    """Our disjoint classes as their inclusive ones."""
    rare = usage.meters
    audio_read, image_read = rare.get("cache_audio_read", 0), rare.get("cache_image_read", 0)
    return genai_prices.Usage(
        input_tokens=total(usage),
        cache_read_tokens=usage.cache_read + audio_read + image_read,
        cache_write_tokens=usage.cache_write_5m + usage.cache_write_1h,
        cache_write_5m_tokens=usage.cache_write_5m,
        cache_write_1h_tokens=usage.cache_write_1h,
        output_tokens=usage.output + rare.get("output_audio", 0) + rare.get("output_image", 0),
        input_audio_tokens=rare.get("input_audio", 0) + audio_read,
        cache_audio_read_tokens=audio_read,
        output_audio_tokens=rare.get("output_audio", 0),
        input_image_tokens=rare.get("input_image", 0) + image_read,
        cache_image_read_tokens=image_read,
        output_image_tokens=rare.get("output_image", 0),
        web_searches=rare.get("web_search", 0),
        storage_searches=rare.get("file_search", 0),
    )


@pytest.mark.parametrize(("provider", "model", "rates", "variant"), CASES, ids=lambda one: getattr(one, "id", None))
def test_a_call_costs_here_what_it_costs_by_genai_prices(provider: Any, model: Any, rates: Rates, variant: str) -> None:
    context = price_sources.contexts(provider.id)[variant] or None

    @settings(max_examples=25, deadline=None, database=None)
    @given(usages(rates, variant))
    def compare(usage: Usage) -> None:
        price = model.calc_price(theirs(usage), provider, genai_request_timestamp=NOW, price_context=context)
        expected = int((price.total_price * 10**9).to_integral_value(rounding=ROUND_HALF_EVEN))
        cost = rates.cost(usage)
        assert (cost.list_nano, cost.charge_nano, cost.provider_cost_nano, cost.marked) == (*[expected] * 3, ())

    compare()


@pytest.mark.parametrize(("provider", "model", "rates", "variant"), CASES, ids=lambda one: getattr(one, "id", None))
def test_nothing_within_a_bound_costs_more_than_its_hold(provider: Any, model: Any, rates: Rates, variant: str) -> None:
    @settings(max_examples=10, deadline=None, database=None)
    @given(usages(rates, variant), st.integers(0, 100), st.integers(1, 8))
    def compare(usage: Usage, more: int, choices: int) -> None:
        meters = {meter: count + more for meter, count in usage.meters.items() if not meter.startswith("output_")}
        audio = usage.meters.get("output_audio", 0) + usage.meters.get("output_image", 0)
        outputs = (
            *(["output"] if usage.output else []),
            *(meter for meter in usage.meters if meter.startswith("output_")),
        )
        text = usage.input + usage.cache_read + usage.cache_write_5m + usage.cache_write_1h + more
        base, pico = rates.bound(Bound(text, meters, outputs, choices, (STANDARD, variant)))
        limit = -(-(usage.output + audio) // choices)
        assert rates.cost(usage).charge_nano <= base + -(-pico * limit // 1000)

    compare()


def test_what_is_paid_by_another_unit_is_imported_in_ours() -> None:
    parts = {name: SOURCE.parts["openai", name] for name in ("tts-1", "whisper-1", "gpt-4o-mini-tts")}
    assert parts == {
        "tts-1": [Part(STANDARD, "input_characters", 0, Decimal(15), 1_000_000)],
        "whisper-1": [Part(STANDARD, "input_seconds", 0, Decimal("0.0001"), 1)],
        "gpt-4o-mini-tts": [
            Part(STANDARD, "input", 0, Decimal("0.6"), 1_000_000),
            Part(STANDARD, "output_audio", 0, Decimal(12), 1_000_000),
        ],
    }
    assert {part.meter for part in SOURCE.parts["openai", "text-embedding-3-small"]} == {"input"}
    assert (
        rates_of("openai", "whisper-1", parts["whisper-1"]).cost(Usage(meters={"input_seconds": 60})).list_nano
        == 6_000_000
    )


def test_what_may_be_billed_and_has_no_price_is_refused_by_name() -> None:
    rates = rates_of("openai", "gpt-4o", SOURCE.parts["openai", "gpt-4o"])
    for bound, named in (
        (Bound(10, {"input_audio": 5}), "input_audio"),
        (Bound(10, output_meters=("output", "output_audio")), "output_audio"),
        (Bound(10, variants=(STANDARD, "flex")), "'flex'"),
    ):
        with pytest.raises(NotBounded, match=named) as refusal:
            rates.bound(bound)
        assert (refusal.value.status, refusal.value.code) == (402, "model_not_priced")
    assert rates.bound(Bound(10, {"input_audio": 0})) == rates.bound(Bound(10))


def test_a_served_variant_or_a_meter_without_a_price_is_rated_by_the_dearest_and_marked() -> None:
    rates = rates_of("openai", "gpt-4o", SOURCE.parts["openai", "gpt-4o"])
    usage = Usage(input=1000, output=100, variant="flex")
    priority = rates.cost(Usage(input=1000, output=100, variant="priority"))
    assert rates.cost(usage) == (*priority[:3], ("variant flex",))
    cost = rates.cost(Usage(meters={"input_audio": 1000, "file_search": 1, "odd": 1}))
    # Audio like the dearest token (output, 10 USD), the file search at its own fee, what nobody knows like a token.
    assert cost.list_nano == 1000 * 10_000 + 2_500_000 + 10_000
    assert cost.marked == ("input_audio", "odd")


def test_the_second_source_reads_the_same_figures_again(tmp_path: Any) -> None:
    file = tmp_path / "list.json"
    file.write_text(
        '{"m": {"litellm_provider": "openai", "input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05,'
        ' "input_cost_per_token_above_272k_tokens": 5e-06, "output_cost_per_token_batches": 5e-06,'
        ' "search_context_cost_per_query": {"search_context_size_low": 0.01, "search_context_size_high": 0.01},'
        ' "output_cost_per_token_ultrafast": 1}, "other": {"litellm_provider": "x"}}'
    )
    source = price_sources.read_second_source(file, "file", "1")
    million = 1_000_000
    assert source.parts == {
        ("openai", "m"): [
            Part("batch", "output", 0, Decimal(5), million),
            Part(STANDARD, "input", 0, Decimal("2.5"), million),
            Part(STANDARD, "input", 272_000, Decimal(5), million),
            Part(STANDARD, "output", 0, Decimal(10), million),
            Part(STANDARD, "web_search", 0, Decimal(10), 1000),
        ]
    }
    with pytest.raises(price_sources.BadSource):
        price_sources.read_second_source(tmp_path / "none", "file", "1")
