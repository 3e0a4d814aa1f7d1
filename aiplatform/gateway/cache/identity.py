"""When two requests are the same question: a keyed hash over all that may change the answer.

Tenant and environment are hashed in, so that two tenants cannot share an answer whatever they ask; so are wire, model as it
was resolved, and the version of the content policy. The key of the hash is the installation's own.
"""

import functools
import hashlib
import hmac
from typing import Any

import jiter
import orjson
from django.conf import settings

from aiplatform.gateway.cache import likeness
from aiplatform.gateway.chain import Route
from aiplatform.gateway.tickets import Ticket

_LENGTH = 20  # bytes; 160 bits tell any number of questions apart
# Fields that say how an answer is to be told, or for whom, and never what it says. Everything else is hashed, known or not.
_TELLING = frozenset(("stream", "stream_options"))
_FOR_WHOM = {
    "chat": frozenset(("user", "safety_identifier", "prompt_cache_key", "metadata")),
    "messages": frozenset(("metadata",)),
    "responses": frozenset(),  # they come back in the answer
    "embeddings": frozenset(("user",)),
}
_REMOTE = ("http://", "https://")


def question(ticket: Ticket, route: Route, policy_version: int, *, normalises: bool) -> str | None:
    """The name of the question, in hex; None where the same words may be another question: where what is asked for is kept
    by the provider, or lies at an address.
    """
    facts = ticket.facts
    try:
        request: dict[str, Any] = jiter.from_json(facts.body)
        if _is_kept(facts.endpoint, request) or _is_remote(request):
            return None
        said = canonical(facts.endpoint, request, normalises=normalises)
    except (ValueError, TypeError):  # numbers that JSON has and Python's writer has not
        return None
    return _name(ticket, route, policy_version, normalises, said)


def bucket(ticket: Ticket, route: Route, policy_version: int, exact: bytes) -> str:
    """The name of what may be like the question, in hex: `exact` and the version of its rules say what must be equal."""
    return _name(ticket, route, policy_version, f"near {likeness.VERSION}", exact)


def without_whom(endpoint: str, request: dict[str, Any]) -> dict[str, Any]:
    """The request without what only says for whom it is."""
    return {name: value for name, value in request.items() if name not in _FOR_WHOM[endpoint]}


def canonical(endpoint: str, request: dict[str, Any], *, normalises: bool) -> bytes:
    """The request without what cannot change the answer, its top-level fields in order.

    Deeper down order stays: a schema's fields are answered in the order in which they are asked.
    """
    left_out = _TELLING | _FOR_WHOM[endpoint]
    kept = {name: value for name, value in sorted(request.items()) if name not in left_out and value is not None}
    if normalises:
        for name in ("messages", "input"):
            if name in kept:
                kept[name] = _normalised(kept[name])
    return orjson.dumps(kept)


def _name(ticket: Ticket, route: Route, policy_version: int, kind: bool | str, said: bytes) -> str:
    facts, principal, first = ticket.facts, ticket.principal, route.steps[0].way
    asked = orjson.dumps([
        principal.tenant_id.hex, principal.environment_id.hex, facts.wire, facts.endpoint, first.place.name,
        first.place.wire, first.model, policy_version, sorted(facts.forward.items()),
        principal.default_max_tokens if facts.max_tokens is None else facts.max_tokens, kind,
    ])  # fmt: skip
    return hmac.digest(_secret(settings.SECRET_KEY), asked + b"\0" + said, hashlib.sha256)[:_LENGTH].hex()


def _normalised(said: Any) -> Any:
    """What the user says, without differences in white space and case; what the system or a tool says stays as it is."""
    if isinstance(said, str):
        return " ".join(said.split()).casefold()
    if not isinstance(said, list):
        return said
    return [
        one | {"content": _normalised_parts(one["content"])}
        if isinstance(one, dict) and one.get("role") == "user" and "content" in one
        else one.casefold() if isinstance(one, str) else one
        for one in said
    ]  # fmt: skip


def _normalised_parts(content: Any) -> Any:
    if not isinstance(content, list):
        return _normalised(content)
    return [
        part | {"text": _normalised(part["text"])}
        if isinstance(part, dict) and isinstance(part.get("text"), str)
        else part
        for part in content
    ]


def _is_kept(endpoint: str, request: dict[str, Any]) -> bool:
    """The provider keeps what it answers, and later requests name it: an answer given again would name another's."""
    if endpoint == "responses":
        return request.get("store") is not False or bool(request.get("background"))
    return bool(request.get("store"))


def _is_remote(request: dict[str, Any]) -> bool:
    """Whether it names what lies at an address, which may be another thing tomorrow."""
    waiting = [request.get("messages"), request.get("input"), request.get("system")]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting.extend(one)
        elif isinstance(one, dict):
            if any(_lies_elsewhere(one.get(name)) for name in ("url", "file_url", "image_url")):
                return True
            waiting.extend(value for value in one.values() if isinstance(value, list | dict))
    return False


def _lies_elsewhere(address: Any) -> bool:
    return isinstance(address, str) and address[:8].lower().startswith(_REMOTE)


@functools.cache
def _secret(of: str) -> bytes:
    return hashlib.sha256(b"aiplatform answers\0" + of.encode()).digest()
