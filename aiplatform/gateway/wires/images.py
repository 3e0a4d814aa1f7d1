"""OpenAI's images: generations and edits, priced by tokens or by the image.

Sources, read in November 2026: developers.openai.com/api/docs/guides/image-generation (output tokens by quality and size, 100
tokens for each partial image), the pricing page, and figures that users measured for gpt-image-2.
"""

import re
from typing import Any, NamedTuple

from aiplatform.gateway.wires import forms
from aiplatform.gateway.wires.base import (
    BYTES_PER_TOKEN,
    Asked,
    BadRequest,
    Facts,
    NotPriced,
    end_user,
    flag,
    read_object,
    text,
    whole,
)
from aiplatform.gateway.wires.bounds import TEMPLATE_TOKENS
from aiplatform.gateway.wires.kept import forwarded
from aiplatform.providers.base import Usage
from usage.pricing import Bound

MOST_IMAGES, MOST_PARTIAL_IMAGES, MOST_INPUT_IMAGES = 10, 3, 16
# Output tokens of gpt-image-1, -1-mini, -1.5 by quality: square, and the greater of upright and wide.
_TOKENS = {"low": (272, 408), "medium": (1056, 1584), "high": (4160, 6240)}
_BY_TABLE = re.compile(r"gpt-image-1(-mini|\.5)?(-\d{4}-\d\d-\d\d)?|chatgpt-image-latest")
# Of later models 1024 x 1024 at high quality has been seen to be 7,024 tokens, and larger ones fewer for each pixel.
_TOKENS_A_SQUARE, _SQUARE_PIXELS, _MOST_PIXELS = 7024, 1024 * 1024, 3840 * 2160
_PARTIAL_TOKENS = 100
# What the model thinks in text before it draws, from gpt-image-1.5 on; no page bounds it.
_TEXT_TOKENS = 2048
# 65 + 129 a tile of 512 px, and with high fidelity 4,160 or 6,240 more; later models are held at the same, rounded up.
_INPUT_IMAGE_TOKENS = 10_240
_SIZE = re.compile(r"([1-9]\d{1,4})x([1-9]\d{1,4})", re.ASCII)


class _Wanted(NamedTuple):
    model: str
    images: int
    size: str
    quality: str
    partial_images: int
    streamed: bool
    text_bytes: int
    input_images: int


def read_generations(asked: Asked) -> Facts:
    """A JSON body."""
    request = read_object(asked.body)
    text(request, "prompt")
    partial = request.get("partial_images")
    wanted = _Wanted(
        text(request, "model"),
        whole(request, "n", MOST_IMAGES) or 1,
        _word(request, "size"),
        _word(request, "quality"),
        0 if partial in (None, 0) else whole(request, "partial_images", MOST_PARTIAL_IMAGES) or 0,
        flag(request, "stream"),
        len(asked.body),
        0,
    )
    return _facts(asked, wanted, request.get("user"))


def read_edits(asked: Asked) -> Facts:
    """A form with images, and perhaps a mask."""
    form = forms.read(asked.headers.get("content-type", ""), asked.body)
    images = form.named("image", "mask")
    if not form.named("image") or len(images) > MOST_INPUT_IMAGES + 1:
        raise BadRequest(f"`image` must be one to {MOST_INPUT_IMAGES} files.", param="image")
    wanted = _Wanted(
        form.required("model"),
        form.whole("n", MOST_IMAGES) or 1,
        form.text("size") or "",
        form.text("quality") or "",
        form.whole("partial_images", MOST_PARTIAL_IMAGES) or 0,
        form.flag("stream"),
        len(asked.body) - sum(len(file.data) for file in form.files),
        len(images),
    )
    return _facts(asked, wanted, form.text("user"))


def _word(request: dict[str, Any], name: str) -> str:
    found = request.get(name)
    if not isinstance(found, str | None):
        raise BadRequest(f"`{name}` must be a string.", param=name)
    return found or ""


def _facts(asked: Asked, wanted: _Wanted, user: Any) -> Facts:
    each, tokens = _each(wanted), _tokens(wanted)
    is_dall_e = wanted.model.startswith("dall-e")
    bound = each._replace(instead=tokens) if is_dall_e else tokens._replace(instead=each)
    return Facts(
        wire=asked.endpoint.wire,
        endpoint=asked.endpoint.name,
        model=wanted.model,
        body=asked.body,
        streamed=wanted.streamed,
        end_user=end_user(user, asked.headers),
        bound=bound,
        max_tokens=0,
        max_tokens_field="",
        media_bytes=len(asked.body) - wanted.text_bytes,
        forward=forwarded(asked),
    )


def _each(wanted: _Wanted) -> Bound:
    """So many images, of the meter that its size and quality name."""
    units = {_meter(wanted): wanted.images}
    return Bound(0, units, (), counted=Usage(meters=units))


def _meter(wanted: _Wanted) -> str:
    """The price class of an image: DALL-E's sizes; what is no square, or has a size of its own, counts as wide."""
    small = {"256x256": "image_256", "512x512": "image_512"}.get(wanted.size)
    is_square = wanted.size in ("", "auto", "1024x1024")
    if wanted.quality in {"hd", "high"}:
        return "image_hd_1024" if small or is_square else "image_hd_wide"
    return small or ("image_1024" if is_square else "image_wide")


def _tokens(wanted: _Wanted) -> Bound:
    most = wanted.images * (_output_tokens(wanted) + wanted.partial_images * _PARTIAL_TOKENS)
    given = wanted.input_images * _INPUT_IMAGE_TOKENS
    text = wanted.text_bytes + TEMPLATE_TOKENS
    meters = {"input_image": given, "output_image": most, "output": wanted.images * _TEXT_TOKENS}
    likely = Usage(-(-wanted.text_bytes // BYTES_PER_TOKEN), meters={"input_image": given, "output_image": most})
    return Bound(text, {meter: units for meter, units in meters.items() if units}, (), counted=likely)


def _output_tokens(wanted: _Wanted) -> int:
    """Of one image at most."""
    if wanted.quality not in {"", "auto", "low", "medium", "high", "standard", "hd"}:
        raise NotPriced(f"Nothing bounds what an image of quality {wanted.quality[:60]!r} costs.", param="quality")
    if _BY_TABLE.fullmatch(wanted.model):
        square, other = _TOKENS.get(wanted.quality, _TOKENS["high"])
        if wanted.size == "1024x1024":
            return square
        if wanted.size in {"", "auto", "1024x1536", "1536x1024"}:
            return other
    size = _SIZE.fullmatch(wanted.size)
    if not size and wanted.size not in {"", "auto"}:
        raise NotPriced(f"Nothing bounds what an image of size {wanted.size[:60]!r} costs.", param="size")
    pixels = int(size[1]) * int(size[2]) if size else _MOST_PIXELS
    return _TOKENS_A_SQUARE * -(-pixels // _SQUARE_PIXELS)
