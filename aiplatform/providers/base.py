"""What every provider has in common: usage in disjoint classes, one raw request through the official SDK, how it can fail."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

import httpx2
import jiter

from aiplatform.providers import sandbox, sandbox_media, sandbox_responses
from aiplatform.providers.transport import Transport

SANDBOX = "sandbox:"  # the base URL of the provider that is built in
SANDBOX_ORIGIN = "http://sandbox.invalid"

_LONGEST_VARIANT = 16
_FORM_TYPE = "x-form-type"
# Copied from a provider's reply to ours; everything else about the connection is between us and the provider.
RELAYED_HEADERS = (
    "content-type", "request-id", "retry-after", "retry-after-ms", "x-should-retry", "openai-processing-ms",
    "openai-version",
)  # fmt: skip
# Not asked for, but some servers compress all the same: what can be undone here is, and the rest says what it is.
_UNDONE = frozenset(("gzip", "deflate", "identity"))


@dataclass(slots=True)
class Usage:
    """Tokens by class. Classes are disjoint, but that `reasoning` is a part of `output`.

    `meters` are units of rarer classes, such as `input_audio` or `web_search`, not counted in the others. `variant` is the
    way by which the provider says that it served the call: standard, batch, flex, priority or fast.
    """

    input: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0
    meters: dict[str, int] = field(default_factory=dict)
    variant: str = "standard"


@dataclass(slots=True)
class Reply:
    """A provider's answer, its body still to be read."""

    status: int
    headers: dict[str, str]
    response: httpx2.Response
    request_id: str = ""

    @property
    def is_success(self) -> bool:
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes as they arrive; raises `Broken`."""
        return _chunks(self.response)

    async def aclose(self) -> None:
        await self.response.aclose()


@dataclass(slots=True)
class Reading:
    """What has been learnt of an answer so far."""

    usage: Usage | None = None
    model: str = ""
    complete: bool = False
    text_bytes: int = 0
    error: str = ""
    raw_usage: dict[str, Any] = field(default_factory=dict)
    variant: str = "standard"
    is_partial: bool = False
    """Its usage is only what the answer's beginning told: the output was still to come."""
    has_stopped: bool = False
    """The model has said why it stopped: all is there, even where the stream's own last event is missing."""
    stops: dict[int, bool] = field(default_factory=dict)
    """Which choices have begun, and which of them have stopped."""
    object: dict[str, Any] | None = None
    """What the answer tells of an object that the provider keeps; it has an `id`."""
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The same of its parts that have ids of their own."""
    is_pending: bool = False
    """It has not ended yet."""
    is_background: bool = False
    """The provider carries it out whether or not somebody waits for it."""
    has_failed: bool = False
    """The provider says that it failed."""
    sequence_number: int = -1
    """Of the last event that has one."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Numbers of it that later calls need."""
    is_kept: bool = False
    """That object is on record."""


class Unsent(Exception):
    """Not a byte of the request left us; it may be tried again."""


class Broken(Exception):
    """The connection failed after the request may have been sent."""


class Reader(Protocol):
    """How the answers of an endpoint are read."""

    def read_whole(self, body: bytes) -> Reading:
        """Usage and model of a plain answer."""

    def read_event(self, reading: Reading, event: bytes) -> None:
        """Adds what one server-sent event tells."""


class Adapter(Protocol):
    """One wire, as its provider speaks it."""

    wire: str
    root: str

    def client(self, base_url: str, secret: str, http_client: httpx2.AsyncClient) -> Any:
        """The official SDK's client, without retries of its own."""

    async def send(
        self, client: Any, endpoint: str, target: str, body: bytes, headers: dict[str, str], *, silence: float
    ) -> Reply:
        """Sends `body` as it is to `target`, a path with its query, "" for the endpoint's own; raises Unsent or Broken.

        `silence` bounds the seconds without a byte.
        """

    def reader(self, endpoint: str) -> Reader:
        """What reads the answers of this endpoint."""


class Free:
    """Reads the answers of endpoints that cost nothing; what they tell of a kept object is all there is to learn."""

    def read_whole(self, body: bytes) -> Reading:
        told = parsed(body)
        is_object = told is not None and isinstance(told.get("id"), str)
        return Reading(usage=Usage(), complete=True, object=told if is_object else None)

    def read_event(self, reading: Reading, event: bytes) -> None:
        """None of these endpoints streams."""


FREE = Free()


def http_client(base_url: str) -> httpx2.AsyncClient:
    """The client beneath an SDK: the built-in provider for `sandbox:`, else the network."""
    built_in = base_url.startswith(SANDBOX_ORIGIN)
    more = [*sandbox_responses.routes(), *sandbox_media.routes()]  # which answers every other path
    transport = httpx2.ASGITransport(sandbox.application(more)) if built_in else Transport()
    hooks = {"request": [_as_it_came]}
    return httpx2.AsyncClient(transport=transport, trust_env=False, follow_redirects=False, event_hooks=hooks)


async def _as_it_came(request: httpx2.Request) -> None:
    """The SDKs take no bytes for a body of type multipart/form-data, so its type goes by another name until here."""
    if form := request.headers.pop(_FORM_TYPE, None):
        request.headers["content-type"] = form


async def raw_send(
    client: Any,
    method: str,
    target: str,
    body: bytes,
    headers: dict[str, str],
    *,
    silence: float,
    api_error: type[Exception],
) -> Reply:
    """One request through an SDK client: its authentication, headers and URL, but bytes in and bytes out.

    `api_error` is the SDK's APIError: a status error carries the response, a connection error the cause.
    """
    more: dict[str, Any] = {"content": body} if method == "POST" else {}
    if headers.get("content-type", "").lower().startswith("multipart/"):
        headers = {_FORM_TYPE if name == "content-type" else name: value for name, value in headers.items()}
    if method != "DELETE":  # whose answers the SDK always reads whole
        more |= {"stream": True, "stream_cls": None}
    try:
        response = await getattr(client, method.lower())(
            target,
            cast_to=httpx2.Response,
            options={
                "headers": headers | {"accept-encoding": "identity"},
                "timeout": httpx2.Timeout(silence, connect=5.0, pool=5.0),
                "max_retries": 0,
            },
            **more,
        )
    except api_error as error:
        response = getattr(error, "response", None)
        if response is None:
            raise _failure(error) from error
    except httpx2.HTTPError as error:
        raise _failure(error) from error
    relayed = {name: response.headers[name] for name in RELAYED_HEADERS if name in response.headers}
    if (encoding := response.headers.get("content-encoding", "identity").lower()) not in _UNDONE:
        relayed["content-encoding"] = encoding
    request_id = response.headers.get("x-request-id") or response.headers.get("request-id") or ""
    return Reply(response.status_code, relayed, response, request_id[:200])


def parsed(body: bytes) -> dict[str, Any] | None:
    """A JSON object, or None for anything else: a provider's output is hostile until read."""
    try:
        value = jiter.from_json(body)
    except ValueError:  # it is strict about lone surrogates, which models do emit
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def tokens(of: dict[str, Any], name: str) -> int | None:
    """A token count; None where it is missing or no count at all. An explicit zero is zero."""
    value = of.get(name)
    return value if type(value) is int and 0 <= value < 1 << 40 else None


def variant(said: str, known: Mapping[str, str]) -> str:
    """The price variant of a provider's word for a way of serving. One that nobody knows keeps its name, so that it shows."""
    word = said[:_LONGEST_VARIANT].lower()
    found = known.get(word, word)
    return found if found.isascii() and found.replace("_", "").isalnum() else "standard"


async def _chunks(response: httpx2.Response) -> AsyncIterator[bytes]:
    if response.is_stream_consumed or response.is_closed:  # the SDK has read an error's body already
        yield response.content
        return
    try:
        is_undone = response.headers.get("content-encoding", "").lower() in _UNDONE
        async for chunk in response.aiter_bytes() if is_undone else response.aiter_raw():
            yield chunk
    except httpx2.HTTPError as error:
        raise Broken(f"{type(error).__name__}: the answer broke off") from error


def _failure(error: BaseException) -> Exception:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, httpx2.ConnectError):
            return Unsent("the provider could not be reached")
        cause = cause.__cause__
    return Broken(f"{type(error.__cause__ or error).__name__}: the connection failed after the request was sent")
