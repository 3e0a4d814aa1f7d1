"""OpenAI's embeddings and moderations: input only."""

from typing import Any

from aiplatform.gateway.wires.base import BYTES_PER_TOKEN, Asked, BadRequest, Facts, end_user, read_object, text
from aiplatform.gateway.wires.bounds import TEMPLATE_TOKENS
from aiplatform.gateway.wires.kept import forwarded
from aiplatform.providers.base import Usage
from usage.pricing import Bound

USUAL_MODERATION = "omni-moderation-latest"


def read_embeddings(asked: Asked) -> Facts:
    """A token of a text is at least one byte of the body, one of an array at least a digit and a comma."""
    request = read_object(asked.body)
    _check_input(request)
    return _facts(asked, text(request, "model"), request.get("user"))


def read_moderations(asked: Asked) -> Facts:
    """Texts and images. The vendor takes nothing, which is a price of 0; where it is not, an image counts as its bytes."""
    request = read_object(asked.body)
    _check_input(request)
    model = text(request, "model") if request.get("model") is not None else USUAL_MODERATION
    return _facts(asked, model, None)


def _check_input(request: dict[str, Any]) -> None:
    given = request.get("input")
    if not isinstance(given, str | list) or not given:
        raise BadRequest("`input` must be a non-empty string or array.", param="input")


def _facts(asked: Asked, model: str, user: Any) -> Facts:
    size = len(asked.body)
    return Facts(
        wire=asked.endpoint.wire,
        endpoint=asked.endpoint.name,
        model=model,
        body=asked.body,
        streamed=False,
        end_user=end_user(user, asked.headers),
        bound=Bound(size + TEMPLATE_TOKENS, {}, (), counted=Usage(-(-size // BYTES_PER_TOKEN))),
        max_tokens=0,
        max_tokens_field="",
        forward=forwarded(asked),
    )
