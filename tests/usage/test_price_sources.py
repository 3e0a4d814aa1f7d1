"""Our engine and genai-prices say the same of every model that is imported, for whatever was used."""

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


def rates_of(provider: str, model: str, parts: list[Part]) -> Rates:
    return Rates(Version(1, provider, model, NOW, None), parts)


def every_variant() -> Iterator[tuple[Any, Any, Rates, str]]:
    """All that is imported, and what is not called by chat but has a price in our meters, too."""
    for (provider_id, model_id), (provider, model) in MODELS.items():
        given_ = {key for key, price in vars(model.get_prices(NOW)).items() if price is not None}
        if not {"input_mtok", "output_mtok"} <= given_ <= price_sources._KNOWN:
            continue
        parts = list(price_sources.represented(provider_id, model, NOW))
        rates = rates_of(provider_id, model_id, parts)
        for variant in sorted({part.variant for part in parts}, key=VARIANTS.index):
            yield provider, model, rates, variant


CASES = list(every_variant())


def test_what_is_compared_covers_what_is_imported() -> None:
    compared = {(provider.id, model.id) for provider, model, _, _ in CASES}
    imported = {
        (provider, found.id) for provider, name in SOURCE.parts if (found := MODELS_BY_NAME[provider].find_model(name))
    }
    with pytest.raises(price_sources.BadSource):
        price_sources.read_second_source(tmp_path / "none", "file", "1")
