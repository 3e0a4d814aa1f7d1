"""The official SDKs as judges: their types of requests and replies, strictly, and what they make of a stream."""

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import openai
from anthropic.types import Message
from anthropic.types.message_create_params import MessageCreateParams
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParams
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, ConfigDict, TypeAdapter

Json = dict[str, Any]

_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
_MESSAGES = TypeAdapter[Any](MessageCreateParams, config=_STRICT)
_CHAT = TypeAdapter[Any](CompletionCreateParams, config=_STRICT)
_RESPONSE_EVENT = TypeAdapter[Any](ResponseStreamEvent)
# Known on the wire, but not to the SDK: 2.x speaks the version without sampling, and thinking in chats is nobody's standard.
_SAMPLING = ("temperature", "top_p")


class _Stream:
    """An HTTP server that answers every request with one stream."""

    body = b""

    def __call__(self, _request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=self.body)


_stream = _Stream()
_http = httpx2.Client(transport=httpx2.MockTransport(_stream))
_openai = openai.OpenAI(api_key="none", base_url="http://far.invalid/v1", http_client=_http, max_retries=0)
_anthropic = anthropic.Anthropic(api_key="none", base_url="http://far.invalid", http_client=_http, max_retries=0)


def check_messages_request(body: Json) -> None:
    """Raises where Anthropic's SDK would not have sent this."""
    _exhaust(_MESSAGES.validate_python({name: value for name, value in body.items() if name not in _SAMPLING}))


def check_chat_request(body: Json) -> None:
    """Raises where OpenAI's SDK would not have sent this, but for the reasoning that compatible servers take back."""
    messages = [
        {name: value for name, value in message.items() if name not in {"reasoning", "reasoning_content"}}
        for message in body["messages"]
    ]
    _exhaust(_CHAT.validate_python(body | {"messages": messages}))


def message(body: bytes) -> Json:
    """A plain reply as Anthropic's SDK reads it; raises for what it does not know or would not accept."""
    read = Message.model_validate_json(body, strict=True)
    assert extras(read) == set()
    return read.to_dict()


def completion(body: bytes) -> Json:
    """A plain reply as OpenAI's SDK reads it; raises for what it would not accept."""
    read = ChatCompletion.model_validate_json(body, strict=True)
    assert extras(read) <= {"reasoning_content", "thinking_blocks"}
    return read.to_dict()


def response(body: bytes) -> Json:
    """A plain reply of responses as OpenAI's SDK reads it; raises for what it does not know or would not accept."""
    read = Response.model_validate_json(body, strict=True)
    assert extras(read) <= {"store"}
    return read.to_dict()


def streamed_response(body: bytes) -> Json:
    """What OpenAI's SDK gathers from a stream of responses, item by item, held against what its last event says."""
    for event in body.split(b"\n\n")[:-1]:
        read = _RESPONSE_EVENT.validate_json(event.split(b"\ndata: ", 1)[1], strict=True)
        assert extras(read) <= {"store"}
    gathered, found = _response_and_its_items(body)
    assert gathered == found["output"]
    return found


def told_response(body: bytes) -> Json:
    """What OpenAI's SDK takes a stream of a response for, which may hold what the SDK does not know."""
    return _response_and_its_items(body)[1]


def _response_and_its_items(body: bytes) -> tuple[list[Json], Json]:
    _stream.body = body
    with _openai.responses.stream(model="m", input="?") as stream:
        *_, last = stream
        gathered = stream._state._completed_output
    if last.type == "error":
        raise ValueError(last.message)  # the SDK leaves it to its caller
    found = without(last.response.to_dict(), {"parsed", "parsed_arguments"})  # type: ignore[union-attr]
    return [gathered[at].to_dict() for at in sorted(gathered)], {**found}


def streamed_message(body: bytes) -> Json:
    """What Anthropic's SDK gathers from a stream."""
    _stream.body = body
    with _anthropic.messages.stream(model="m", max_tokens=1, messages=[{"role": "user", "content": "?"}]) as stream:
        return stream.get_final_message().to_dict()


def streamed_completion(body: bytes) -> Json:
    """What OpenAI's SDK gathers from a stream."""
    _stream.body = body
    with _openai.chat.completions.stream(model="m", messages=[{"role": "user", "content": "?"}]) as stream:
        found: Json = (
            stream.until_done().current_completion_snapshot.to_dict()
        )  # the final one raises for answers cut off
    return {**without(found, {"parsed", "parsed_arguments"})}


def without(value: Any, names: set[str]) -> Any:
    """The value without fields of these names, however deep."""
    if isinstance(value, dict):
        return {name: without(one, names) for name, one in value.items() if name not in names}
    return [without(one, names) for one in value] if isinstance(value, list) else value


def extras(value: Any) -> set[str]:
    """The fields that an SDK's object holds without knowing them."""
    if isinstance(value, BaseModel):
        inner = [extras(getattr(value, name)) for name in type(value).model_fields]
        return set(value.model_extra or {}).union(*inner)
    if isinstance(value, dict):
        return set().union(*map(extras, value.values()))
    return set().union(*map(extras, value)) if isinstance(value, list) else set()


def _exhaust(value: Any) -> None:
    """Iterables are checked as they are read."""
    if isinstance(value, dict):
        for one in value.values():
            _exhaust(one)
    elif isinstance(value, Iterator | list | tuple):
        for one in value:
            _exhaust(one)
