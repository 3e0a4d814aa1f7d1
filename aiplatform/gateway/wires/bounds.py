"""How many tokens the parts of a request may cost at most: the vendors' rules for images and audio, in one table.

Sources, read in November 2026: developers.openai.com/api/docs/guides/images-vision (tiles, patches, detail),
developers.openai.com/api/docs/guides/realtime-costs (audio), platform.claude.com/docs/en/build-with-claude/vision.
Where a page is silent on a model, the dearest rule that it knows applies. docs/holds.md has the table in words.
"""

import re
from dataclasses import dataclass

from aiplatform.gateway.wires import media
from aiplatform.gateway.wires.base import AUDIO_MARGIN

# A token is at least one byte of text under byte-level tokenizers, which both vendors use, and JSON never encodes text in fewer
# bytes than UTF-8. The frame around a message is 3 to 7 tokens and its JSON, `{"role":"user"}`, at least 15 bytes, so it is
# counted already, and so is that of an image or an audio part. What no byte of the body accounts for is here.
TEMPLATE_TOKENS = 256
TOOLS_TOKENS = 1024
AUDIO_TOKENS_PER_SECOND = 10 * AUDIO_MARGIN  # documented: one token for each 100 ms


@dataclass(slots=True)
class Media:
    """The images and the audio of a body, summed while its parts are looked at."""

    encoded_bytes: int = 0
    image_tokens: int = 0
    audio_tokens: int = 0

    def add_image(self, encoded: str, tokens: int) -> None:
        """An image of at most `tokens`, whose bytes in the body are no text."""
        self.encoded_bytes += len(encoded)
        self.image_tokens += tokens

    def add_audio(self, encoded: str, seconds: int) -> None:
        self.encoded_bytes += len(encoded)
        self.audio_tokens += seconds * AUDIO_TOKENS_PER_SECOND

    @property
    def meters(self) -> dict[str, int]:
        found = {"input_image": self.image_tokens, "input_audio": self.audio_tokens}
        return {meter: tokens for meter, tokens in found.items() if tokens}


# --- OpenAI's images ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tiles:
    """A base and a price for each 512-px tile, once the image fits 2048 x 2048 and its short side is 768."""

    base: int
    tile: int

    def tokens(self, size: tuple[int, int] | None, detail: str) -> int:
        if detail == "low":
            return self.base
        return self.base + self.tile * (_tiles(*size) if size else 8)


@dataclass(frozen=True, slots=True)
class Patches:
    """A factor (in hundredths) for each 32-px patch; `most` patches by detail, None where large images are not scaled down."""

    hundredths: int
    most: tuple[int | None, int | None, int | None]
    """For high, auto and original."""

    def tokens(self, size: tuple[int, int] | None, detail: str) -> int | None:
        if detail == "low":  # scaled to 512 x 512, also upwards
            return -(-256 * self.hundredths // 100)
        most = self.most[("high", "auto", "original").index(detail)]
        patches = -(-size[0] // 32) * -(-size[1] // 32) if size else most
        if patches is None:
            return None
        return -(-(patches if most is None else min(patches, most)) * self.hundredths // 100)


def _tiles(width: int, height: int) -> int:
    """Tiles after scaling; small images count as if scaled up, as the page's words allow."""
    short, long = min(width, height), max(width, height)
    # Scale by the smaller of 768/short and 2048/long, in whole numbers.
    top, bottom = (768, short) if 768 * long <= 2048 * short else (2048, long)
    return -(-width * top // (512 * bottom)) * -(-height * top // (512 * bottom))


_SMALL = (1536, 1536, 1536)
_LARGE = (2500, 10_000, 10_000)
_AS_IT_IS = (2500, None, None)
_GREATEST_FACTOR = 246
OPENAI_IMAGES: dict[str, tuple[Tiles | Patches, ...]] = {
    "gpt-4-turbo": (Tiles(85, 170),),
    "gpt-4-vision": (Tiles(85, 170),),
    "gpt-4o": (Tiles(85, 170),),
    "chatgpt-4o": (Tiles(85, 170),),
    "gpt-4o-mini": (Tiles(2833, 5667),),
    "gpt-4.5": (Tiles(85, 170),),
    "gpt-4.1": (Tiles(85, 170), Patches(100, _SMALL)),
    "gpt-4.1-mini": (Patches(162, _SMALL),),
    "gpt-4.1-nano": (Patches(246, _SMALL),),
    "o1": (Tiles(75, 150),),
    "o3": (Tiles(75, 150),),
    "o4-mini": (Patches(172, _SMALL),),
    "gpt-5": (Tiles(70, 140),),
    "gpt-5-mini": (Patches(162, _SMALL),),
    "gpt-5-nano": (Patches(246, _SMALL),),
    "gpt-5.1": (Tiles(70, 140), Patches(_GREATEST_FACTOR, _SMALL)),
    "gpt-5.2": (Patches(_GREATEST_FACTOR, _SMALL),),
    "gpt-5.3": (Patches(_GREATEST_FACTOR, _SMALL),),
    "gpt-5.4": (Patches(_GREATEST_FACTOR, _LARGE),),
    "gpt-5.4-mini": (Patches(162, _SMALL),),
    "gpt-5.4-nano": (Patches(246, _SMALL),),
    "gpt-5.5": (Patches(120, _LARGE),),
    "gpt-5.6": (Patches(120, _AS_IT_IS),),
    "gpt-6": (Patches(120, _AS_IT_IS),),
}
_ANY = tuple({rule: None for rules in OPENAI_IMAGES.values() for rule in rules} | {Patches(246, _AS_IT_IS): None})
_OPENAI_FAMILY = re.compile(
    "(" + "|".join(re.escape(name) for name in sorted(OPENAI_IMAGES, key=len, reverse=True)) + r")(?![a-z0-9.])"
)


def openai_image(model: str, encoded: str | None, detail: str) -> int | None:
    """Tokens that an image costs at most; `encoded` is None where it is not in the body. None: nothing bounds it."""
    family = _OPENAI_FAMILY.match(model)
    rules = OPENAI_IMAGES[family[1]] if family else _ANY
    size = media.image_size(encoded) if encoded else None
    found = [rule.tokens(size, detail) for rule in rules]
    return None if None in found else max(tokens for tokens in found if tokens is not None)


# --- Anthropic's images ---------------------------------------------------------------------------------------------

# The page says 1,568 and 4,784; up to 1,600 have been seen for the first, so both have 2.5 % more.
_STANDARD_TOKENS, _HIGH_TOKENS = 1608, 4904
_STANDARD = re.compile(
    r"claude-(2|3|instant|v1|haiku-4|sonnet-4-?[0-6]|opus-4-?[0-6]|(sonnet|opus|haiku)-4-\d{8})(?![0-9])"
)


def anthropic_image(model: str, encoded: str | None) -> int:
    """Tokens that an image costs at most: 28-px patches, or width x height / 750 as it was, after scaling down."""
    most = _STANDARD_TOKENS if _STANDARD.match(model) else _HIGH_TOKENS
    size = media.image_size(encoded) if encoded else None
    if size is None:
        return most
    width, height = size
    return min(most, max(-(-width // 28) * -(-height // 28), -(-width * height // 750)))
