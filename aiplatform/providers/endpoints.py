"""Every endpoint that we speak, in one table: our routes and the providers' paths both follow from it.

A path is the same at our door and below a provider's origin. `{id}` names an object that the provider keeps; which tenant's
it is, our own table says (docs/objects.md).
"""

from typing import Any, NamedTuple
from urllib.parse import quote


class Endpoint(NamedTuple):
    """One request of a wire. `name` is what `Call.endpoint` says; unique within its wire."""

    name: str
    wire: str
    method: str
    path: str
    of: str = ""
    """The kind of object that `{id}` names: only its owner's calls pass, to where it is kept."""
    makes: str = ""
    """The kind of object that the reply tells; on record before the reply goes out."""
    is_free: bool = False
    """The provider takes nothing for it: no hold, no model of ours."""
    is_upload: bool = False
    """Its body is multipart/form-data, and may be larger."""
    is_local: bool = False
    """We answer it ourselves; no call is made."""
    lists: str = ""
    """The kind of kept object that it lists: the environment's own."""

    def target(self, params: dict[str, Any], query: str) -> str:
        """Path and query as the provider gets them."""
        path = self.path
        for name, value in params.items():
            path = path.replace(f"{{{name}}}", quote(str(value), safe=""))
        return f"{path}?{query}" if query else path


_OPENAI = (
    Endpoint("chat", "openai", "POST", "/v1/chat/completions"),
    Endpoint("responses", "openai", "POST", "/v1/responses", makes="response"),
    Endpoint("responses.input_tokens", "openai", "POST", "/v1/responses/input_tokens", is_free=True),
    Endpoint("responses.retrieve", "openai", "GET", "/v1/responses/{id}", of="response", is_free=True),
    Endpoint("responses.delete", "openai", "DELETE", "/v1/responses/{id}", of="response", is_free=True),
    Endpoint("responses.cancel", "openai", "POST", "/v1/responses/{id}/cancel", of="response", is_free=True),
    Endpoint("responses.input_items", "openai", "GET", "/v1/responses/{id}/input_items", of="response", is_free=True),
    Endpoint("embeddings", "openai", "POST", "/v1/embeddings"),
    Endpoint("moderations", "openai", "POST", "/v1/moderations"),
    Endpoint("images", "openai", "POST", "/v1/images/generations"),
    Endpoint("images.edits", "openai", "POST", "/v1/images/edits", is_upload=True),
    Endpoint("speech", "openai", "POST", "/v1/audio/speech"),
    Endpoint("transcriptions", "openai", "POST", "/v1/audio/transcriptions", is_upload=True),
    Endpoint("translations", "openai", "POST", "/v1/audio/translations", is_upload=True),
    Endpoint("models.list", "openai", "GET", "/v1/models", is_local=True),
    Endpoint("models.retrieve", "openai", "GET", "/v1/models/{model:path}", is_local=True),
    Endpoint("files.create", "openai", "POST", "/v1/files", makes="file", is_free=True, is_upload=True),
    Endpoint("files.list", "openai", "GET", "/v1/files", is_local=True, lists="file"),
    Endpoint("files.retrieve", "openai", "GET", "/v1/files/{id}", of="file", is_free=True),
    Endpoint("files.content", "openai", "GET", "/v1/files/{id}/content", of="file", is_free=True),
    Endpoint("files.delete", "openai", "DELETE", "/v1/files/{id}", of="file", is_free=True),
    Endpoint("batches.create", "openai", "POST", "/v1/batches", makes="batch", is_free=True),
    Endpoint("batches.list", "openai", "GET", "/v1/batches", is_local=True, lists="batch"),
    Endpoint("batches.retrieve", "openai", "GET", "/v1/batches/{id}", of="batch", is_free=True),
    Endpoint("batches.cancel", "openai", "POST", "/v1/batches/{id}/cancel", of="batch", is_free=True),
)
_BATCHES = "/v1/messages/batches"
_ANTHROPIC = (
    Endpoint("messages", "anthropic", "POST", "/v1/messages"),
    Endpoint("count_tokens", "anthropic", "POST", "/v1/messages/count_tokens", is_free=True),
    Endpoint("models.list", "anthropic", "GET", "/v1/models", is_local=True),
    Endpoint("models.retrieve", "anthropic", "GET", "/v1/models/{model:path}", is_local=True),
    Endpoint("files.create", "anthropic", "POST", "/v1/files", makes="file", is_free=True, is_upload=True),
    Endpoint("files.list", "anthropic", "GET", "/v1/files", is_local=True, lists="file"),
    Endpoint("files.retrieve", "anthropic", "GET", "/v1/files/{id}", of="file", is_free=True),
    Endpoint("files.content", "anthropic", "GET", "/v1/files/{id}/content", of="file", is_free=True),
    Endpoint("files.delete", "anthropic", "DELETE", "/v1/files/{id}", of="file", is_free=True),
    Endpoint("message_batches.create", "anthropic", "POST", _BATCHES, makes="message_batch", is_free=True),
    Endpoint("message_batches.list", "anthropic", "GET", _BATCHES, is_local=True, lists="message_batch"),
    Endpoint("message_batches.retrieve", "anthropic", "GET", f"{_BATCHES}/{{id}}", of="message_batch", is_free=True),
    Endpoint(
        "message_batches.cancel", "anthropic", "POST", f"{_BATCHES}/{{id}}/cancel", of="message_batch", is_free=True
    ),
    Endpoint(
        "message_batches.results", "anthropic", "GET", f"{_BATCHES}/{{id}}/results", of="message_batch", is_free=True
    ),
    Endpoint("message_batches.delete", "anthropic", "DELETE", f"{_BATCHES}/{{id}}", of="message_batch", is_free=True),
)
ENDPOINTS: dict[tuple[str, str], Endpoint] = {(one.wire, one.name): one for one in (*_OPENAI, *_ANTHROPIC)}
