"""Requests about what a provider keeps for a tenant: uploads, and whatever names an object in its path."""

from aiplatform.gateway.wires import forms
from aiplatform.gateway.wires.base import Asked, BadRequest, Facts, Named, end_user, read_object, text
from aiplatform.providers.base import Usage
from usage.pricing import Bound

FORWARDED = ("content-type", "openai-beta", "anthropic-version", "anthropic-beta")


def read_named(asked: Asked) -> Facts:
    """An object of the path: nothing of the body matters to us."""
    facts = free(asked)
    if asked.endpoint.of:
        facts.names.append(Named(asked.endpoint.of, asked.params["id"]))
    return facts


def read_upload(asked: Asked) -> Facts:
    """A form with one file, which no two readers could tell apart: a batch may be made of it later."""
    forms.read(asked.headers.get("content-type", ""), asked.body).only("file")
    facts = free(asked)
    facts.provider = asked.headers.get("x-provider", "")[:60]
    return facts


def read_batch(asked: Asked) -> Facts:
    """A batch of the lines of a file; what they cost is a call of its own."""
    facts = free(asked)
    facts.names.append(Named("file", text(read_object(asked.body), "input_file_id"), "input_file_id"))
    return facts


def read_message_batch(asked: Asked) -> Facts:
    """A batch whose requests are in the body. It goes where the model of the first one is served."""
    requests = read_object(asked.body).get("requests")
    first = requests[0] if isinstance(requests, list) and requests else None
    params = first.get("params") if isinstance(first, dict) else None
    if not isinstance(params, dict):
        raise BadRequest("requests: must be a non-empty array of objects with `params`", param="requests")
    return free(asked, text(params, "model"))


def read_counting(asked: Asked) -> Facts:
    """How many tokens a message would have: its vendor tells for nothing, whatever is in it."""
    return free(asked, text(read_object(asked.body), "model"))


def free(asked: Asked, model: str = "") -> Facts:
    """The facts of a request that costs nothing."""
    return Facts(
        wire=asked.endpoint.wire,
        endpoint=asked.endpoint.name,
        model=model,
        body=asked.body,
        streamed=False,
        end_user=end_user(None, asked.headers),
        bound=Bound(0, {}, (), counted=Usage()),
        max_tokens=0,
        max_tokens_field="",
        media_bytes=len(asked.body),
        is_free=True,
        forward=forwarded(asked),
    )


def forwarded(asked: Asked) -> dict[str, str]:
    """The headers that go along."""
    return {name: asked.headers[name] for name in FORWARDED if name in asked.headers}
