"""Between the wires: a request in the provider's, its replies and streams in the caller's. Pure functions, no state."""

from aiplatform.gateway.translate import (
    chat_reply,
    chat_request,
    messages_reply,
    messages_request,
    responses_reply,
    responses_request,
)
from aiplatform.gateway.translate.base import (
    Asked,
    Both,
    Json,
    Outgoing,
    StreamTranslator,
    Translation,
    UnreadableAnswer,
    dumps,
)
from aiplatform.gateway.translate.results import told_apart
from aiplatform.gateway.wires.base import BadRequest, read_object

__all__ = ["Asked", "Outgoing", "StreamTranslator", "Translation", "UnreadableAnswer", "between"]


class ChatOnMessages:
    """A chat completion's caller, served by Anthropic."""

    provider_wire, provider_endpoint = "anthropic", "messages"

    def check(self, request: Json) -> None:
        chat_request.messages_request(request, model="", max_tokens=1)

    def request(self, body: bytes, *, model: str, max_tokens: int, limit_field: str, created: int) -> Outgoing:
        del limit_field  # there is but one
        asked = read_object(body)
        made = chat_request.messages_request(asked, model=model, max_tokens=max_tokens)
        return Outgoing(dumps(made), {"anthropic-version": chat_request.version(made)}, Asked.by(asked, created))

    def whole(self, body: bytes, asked: Asked) -> bytes:
        return chat_reply.completion(body, asked)

    def error(self, status: int, body: bytes) -> bytes:
        return chat_reply.error(status, body)

    def stream(self, asked: Asked) -> StreamTranslator:
        return StreamTranslator(chat_reply.Chunks(asked), chat_reply.chunk_written, b"data: [DONE]\n\n")


class MessagesOnChat:
    """A messages' caller, served by OpenAI or any server of chat completions."""

    provider_wire, provider_endpoint = "openai", "chat"

    def check(self, request: Json) -> None:
        messages_request.chat_request(request, model="", limit={})

    def request(self, body: bytes, *, model: str, max_tokens: int, limit_field: str, created: int) -> Outgoing:
        asked = read_object(body)
        made = messages_request.chat_request(asked, model=model, limit={limit_field: max_tokens})
        return Outgoing(dumps(made), {}, Asked.by(asked, created))

    def whole(self, body: bytes, asked: Asked) -> bytes:
        return messages_reply.message(body, asked)

    def error(self, status: int, body: bytes) -> bytes:
        return messages_reply.error(status, body)

    def stream(self, asked: Asked) -> StreamTranslator:
        return StreamTranslator(messages_reply.Events(asked), messages_reply.event_written)


class ResponsesOnChat:
    """A caller of responses, served by a server of chat completions that has no responses."""

    provider_wire, provider_endpoint = "openai", "chat"

    def check(self, request: Json) -> None:
        responses_request.chat_request(request, model="", limit={})

    def request(self, body: bytes, *, model: str, max_tokens: int, limit_field: str, created: int) -> Outgoing:
        asked = read_object(body)
        made, _ = responses_request.chat_request(asked, model=model, limit={limit_field: max_tokens})
        made["messages"] = told_apart(made["messages"])
        return Outgoing(dumps(made), {}, Asked.by(asked, created))

    def whole(self, body: bytes, asked: Asked) -> bytes:
        return responses_reply.response(body, asked)

    def error(self, status: int, body: bytes) -> bytes:
        return responses_reply.error(status, body)

    def stream(self, asked: Asked) -> StreamTranslator:
        return StreamTranslator(responses_reply.Events(asked), responses_reply.event_written)


class ResponsesOnMessages:
    """A caller of responses, served by Anthropic, by way of chat completions."""

    provider_wire, provider_endpoint = "anthropic", "messages"

    def check(self, request: Json) -> None:
        self._made(request, model="", max_tokens=1)

    def request(self, body: bytes, *, model: str, max_tokens: int, limit_field: str, created: int) -> Outgoing:
        del limit_field  # there is but one
        asked = read_object(body)
        made = self._made(asked, model=model, max_tokens=max_tokens)
        return Outgoing(dumps(made), {"anthropic-version": chat_request.version(made)}, Asked.by(asked, created))

    def _made(self, request: Json, *, model: str, max_tokens: int) -> Json:
        chat, origins = responses_request.chat_request(request, model=model, limit={})
        try:
            return chat_request.messages_request(chat, model=model, max_tokens=max_tokens)
        except BadRequest as error:
            raise responses_request.in_its_words(error, origins) from error

    def whole(self, body: bytes, asked: Asked) -> bytes:
        return responses_reply.response(chat_reply.completion(body, _between(asked)), asked)

    def error(self, status: int, body: bytes) -> bytes:
        return chat_reply.error(status, body)

    def stream(self, asked: Asked) -> StreamTranslator:
        replies = Both(chat_reply.Chunks(_between(asked)), responses_reply.Events(asked))
        return StreamTranslator(replies, responses_reply.event_written)


def _between(asked: Asked) -> Asked:
    """What the reply in the middle must know: whoever turns it on wants the usage."""
    return Asked({"model": asked.request.get("model"), "stream_options": {"include_usage": True}}, asked.created)


_TRANSLATIONS: dict[tuple[str, str, str], Translation] = {
    ("openai", "chat", "anthropic"): ChatOnMessages(),
    ("anthropic", "messages", "openai"): MessagesOnChat(),
    ("openai", "responses", "openai"): ResponsesOnChat(),
    ("openai", "responses", "anthropic"): ResponsesOnMessages(),
}


def between(caller_wire: str, caller_endpoint: str, provider_wire: str) -> Translation | None:
    """What serves callers of this endpoint by providers of that wire; None where nothing does, or nothing need.

    For responses by providers of OpenAI's wire it is what serves them where a provider has no responses of its own.
    """
    return _TRANSLATIONS.get((caller_wire, caller_endpoint, provider_wire))
