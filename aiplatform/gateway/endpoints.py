"""How the facts of each endpoint's requests are read, and which routes lead there."""

from collections.abc import Callable

from starlette.requests import Request

from aiplatform.gateway import wires
from aiplatform.gateway.wires import Asked, Facts, Wire, audio, embeddings, images, kept, responses
from aiplatform.providers.endpoints import ENDPOINTS, Endpoint

READERS: dict[tuple[str, str], Callable[[Asked], Facts]] = {
    ("openai", "chat"): lambda asked: wires.OPENAI.read("chat", asked.body, asked.headers),
    ("openai", "responses"): responses.read,
    ("openai", "responses.input_tokens"): responses.read_count,
    ("openai", "responses.retrieve"): responses.read_look,
    ("anthropic", "messages"): lambda asked: wires.ANTHROPIC.read("messages", asked.body, asked.headers),
    ("openai", "embeddings"): embeddings.read_embeddings,
    ("openai", "moderations"): embeddings.read_moderations,
    ("openai", "images"): images.read_generations,
    ("openai", "images.edits"): images.read_edits,
    ("openai", "speech"): audio.read_speech,
    ("openai", "transcriptions"): audio.read_transcription,
    ("openai", "translations"): audio.read_transcription,
    ("openai", "files.create"): kept.read_upload,
    ("openai", "batches.create"): kept.read_batch,
    ("anthropic", "message_batches.create"): kept.read_message_batch,
    ("anthropic", "count_tokens"): kept.read_counting,
    ("anthropic", "files.create"): kept.read_upload,
}


def read(asked: Asked) -> Facts:
    """The facts of a request; raises ApiError with what was wrong."""
    one = asked.endpoint
    facts = (READERS.get((one.wire, one.name)) or kept.read_named)(asked)
    facts.is_free, facts.makes = one.is_free, facts.makes or one.makes
    if asked.params or asked.query:
        facts.target = one.target(dict(asked.params), asked.query)
    return facts


def routes() -> dict[tuple[str, str], list[Endpoint]]:
    """The endpoints at each (path, method); those of both wires share one."""
    found: dict[tuple[str, str], list[Endpoint]] = {}
    for one in ENDPOINTS.values():
        found.setdefault((one.path, one.method), []).append(one)
    return found


def wire_of(request: Request) -> Wire:
    """The wire of a request to a path that both have: Anthropic's SDK always says its version."""
    return wires.ANTHROPIC if "anthropic-version" in request.headers else wires.OPENAI


def by_path(path: str) -> Endpoint | None:
    """The endpoint of calls that have a price, by its path."""
    return next(
        (one for one in ENDPOINTS.values() if one.path == path and one.method == "POST" and not one.is_free), None
    )
