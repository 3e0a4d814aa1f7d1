"""The forms of a kept answer: a plain body or a stream, each made from the other, or not at all."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from aiplatform.gateway.cache import forms_chat, forms_messages, forms_responses
from aiplatform.gateway.cache.forms_events import NotRenderable, again, dumps, read, written
from aiplatform.providers.base import parsed

__all__ = ["NotRenderable", "again", "plain", "stream"]

_FORMS: dict[str, ModuleType] = {"chat": forms_chat, "messages": forms_messages, "responses": forms_responses}


def plain(endpoint: str, events: bytes) -> bytes:
    """The whole answer put together from a stored stream, as the endpoint answers where nobody asked for a stream.

    Raises NotRenderable for a stream that broke off, failed, or says what has no known place in a plain answer.
    """
    together = _form(endpoint).together
    return dumps(_faithful(together, read(endpoint, events)))


def stream(endpoint: str, body: bytes, *, hide_usage: bool) -> bytes:
    """A whole stream, numbered, that tells a plain answer. `hide_usage` leaves out a chat's usage, which nobody asked for.

    Raises NotRenderable where the answer would not come out of that stream again as it is.
    """
    form, answer = _form(endpoint), parsed(body)
    if answer is None:
        raise NotRenderable("no JSON object")
    events = _faithful(form.apart, answer)
    if _faithful(form.together, events) != answer:
        raise NotRenderable("a stream would lose something of it")
    return again(written(endpoint, events), hide_usage=hide_usage and endpoint == "chat")


def _form(endpoint: str) -> ModuleType:
    if endpoint not in _FORMS:
        raise NotRenderable(f"no other form of {endpoint}")
    return _FORMS[endpoint]


def _faithful(made: Callable[[Any], Any], of: Any) -> Any:
    """What is made of an answer that a provider wrote, who may have left out or misspelt anything."""
    try:
        return made(of)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise NotRenderable(f"{type(error).__name__}: {error}") from error
