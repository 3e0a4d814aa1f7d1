"""The far end's HTTP server: both wires, a script of faults, a journal; lean enough to stand below a benchmark.

A good reply at no latency is parsed, journalled and answered within one callback of the event loop;
everything else becomes a task.
"""

import asyncio
import base64
import contextlib
import hashlib
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import parse_qsl

import httptools

from tests.fakes import more, replies, responses
from tests.fakes.codec import dumps, loads
from tests.fakes.faults import Fault, Script
from tests.fakes.journal import Journal

WIRES = {b"/v1/chat/completions": "openai", b"/v1/messages": "anthropic", b"/v1/responses": "responses"}
KEPT_RESPONSES = b"/v1/responses/"
HEADERS_READ = frozenset(
    {b"authorization", b"x-api-key", b"x-client-request-id", b"content-type", b"anthropic-version", b"anthropic-beta"}
)
RESET = struct.pack("ii", 1, 0)
ENDS = {"chunked": b"transfer-encoding: chunked", "close": b"connection: close"}


@dataclass(kw_only=True)
class FarEnd:
    """What all connections share."""

    journal: Journal
    script: Script
    usual: Fault
    output_tokens: int
    listener: asyncio.Server | None = None
    port: int = 0
    slammed: int = 0
    """So many of the next connections are reset before a byte is read."""

    def __post_init__(self) -> None:
        self.kept = more.Kept()
        self.connections: set[Connection] = set()
        self.responses = responses.Store()
        self.looks: list[str] = []

    async def listen(self, *, open_door: bool) -> None:
        """Accept calls, or have them refused; closing also drops the connections that are open."""
        if open_door and self.listener is None:
            loop = asyncio.get_running_loop()
            self.listener = await loop.create_server(lambda: Connection(self), "127.0.0.1", self.port, backlog=1024)
            self.port = self.listener.sockets[0].getsockname()[1]
        elif not open_door and self.listener is not None:
            self.listener.close()
            self.listener = None
            for connection in tuple(self.connections):
                connection.transport.abort()

    def slam(self, times: int) -> None:
        """Reset the next connections before reading; those that are open are dropped, so that none is used again."""
        self.slammed = times
        for connection in tuple(self.connections):
            connection.transport.abort()


class Request:
    """One HTTP request as it was read."""

    __slots__ = ("body", "headers", "keep_alive", "method", "path")

    def __init__(self) -> None:
        self.path = b""
        self.method = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.keep_alive = True


class Connection(asyncio.Protocol):
    """One client's connection; its requests are answered in their order."""

    def __init__(self, far_end: FarEnd, *, is_control: bool = False) -> None:
        self.far_end = far_end
        self.is_control = is_control
        self.parser = httptools.HttpRequestParser(self)
        self.waiting: deque[Request] = deque()
        self.task: asyncio.Task[None] | None = None
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self.is_control:
            return
        if self.far_end.slammed:
            self.far_end.slammed -= 1
            reset(self.transport)
            return
        self.far_end.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Give up what is not answered yet: the client is gone."""
        self.far_end.connections.discard(self)
        self.writable.set()
        if self.task is not None:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse; what is no HTTP ends the connection."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    # --- called by the parser ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.request = Request()

    def on_url(self, url: bytes) -> None:
        self.request.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in HEADERS_READ:
            self.request.headers[name] = value

    def on_body(self, body: bytes) -> None:
        self.request.body = self.request.body + body if self.request.body else body

    def on_message_complete(self) -> None:
        """Answer, or queue behind a reply that is still being sent."""
        self.request.method = self.parser.get_method()
        self.request.keep_alive = self.parser.should_keep_alive()
        if self.task is None:
            self.answer(self.request)
        else:
            self.waiting.append(self.request)

    # --- answering --------------------------------------------------------------------------------------------------

    def answer(self, request: Request) -> None:
        """Answer at once where that is possible."""
        if request.path.startswith(KEPT_RESPONSES):
            self.start(self.answer_kept(request))
        elif more.is_known(request.method.decode(), request.path.decode("latin-1")):
            self.answer_more(request)
        elif request.method == b"POST" and not request.path.startswith(b"/_"):
            self.answer_call(request)
        else:
            self.start(self.answer_other(request))

    def answer_call(self, request: Request) -> None:
        """Journal a call's arrival, then answer it as the script says."""
        far_end = self.far_end
        wire = WIRES.get(request.path.partition(b"?")[0])
        rule = far_end.script.take(request.body) if far_end.script.rules else None
        fault = rule.fault if rule else far_end.usual
        found = replies.CANARY.search(request.body)
        canary = found[0].decode() if found else ""
        number = far_end.journal.calls + 1
        given: Any = {"canary": canary, "output_tokens": far_end.output_tokens, "fault": fault}
        try:
            if wire == "responses":
                ask = replies.read_response(far_end.responses, number, request.body, **given)
            else:
                ask = replies.read(wire or "openai", number, request.body, **given)
        except (ValueError, RecursionError):
            ask = None
        auth, auth_hash = credential(request.headers.get(b"authorization"), request.headers.get(b"x-api-key"))
        far_end.journal.arrived(
            request_id=request.headers.get(b"x-client-request-id", b"").decode("latin-1") or None,
            path=request.path.decode("latin-1"),
            wire=wire,
            model=ask.model if ask else None,
            stream=ask.stream if ask else None,
            sha256=hashlib.sha256(request.body).hexdigest(),
            bytes_in=len(request.body),
            auth=auth,
            auth_hash=auth_hash,
            canary=canary or None,
            fault=rule.given if rule else None,
        )
        reply = Reply(self, request, number)
        if wire is None or ask is None:
            status = 404 if wire is None else 400
            reply.send_whole(status, replies.Piece(replies.error(wire or "openai", status)))
        elif fault is PLAIN:
            reply.send_good(ask)
        else:
            self.start(reply.send(ask), at_end=reply.end)

    async def answer_kept(self, request: Request) -> None:
        """Answer what is asked about a stored response; a look is no call, but is counted among the looks."""
        self.far_end.looks.append(f"{request.method.decode()} {request.path.decode('latin-1')}")
        path, _, query = request.path.decode("latin-1").partition("?")
        asked = loads(request.body) if request.body else None
        found = self.far_end.responses.answer(request.method.decode(), path, dict(parse_qsl(query)), asked)
        rule = self.far_end.script.take(request.path) if self.far_end.script.rules else None
        if rule is not None and rule.fault.status:
            found = responses.Answer(rule.fault.status, replies.error("openai", rule.fault.status))
        if found.events is None:
            self.transport.write(
                head(found.status, content_length=len(found.body), content_type="application/json") + found.body
            )
            return
        self.transport.write(head(200, content_type="text/event-stream"))
        for event in found.events:
            await self.writable.wait()
            self.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
            await asyncio.sleep((found.fault or PLAIN).pace_ms / 1000)
        self.transport.write(b"0\r\n\r\n")

    def answer_more(self, request: Request) -> None:
        """Journal and answer a request to one of the other endpoints."""
        far_end = self.far_end
        rule = far_end.script.take(request.body) if far_end.script.rules else None
        auth, auth_hash = credential(request.headers.get(b"authorization"), request.headers.get(b"x-api-key"))
        is_anthropic = b"anthropic-version" in request.headers
        asked = more.Request(
            request.method.decode(),
            request.path.decode("latin-1"),
            "anthropic" if is_anthropic else "openai",
            request.headers.get(b"content-type", b"").decode("latin-1"),
            request.body,
            far_end.journal.calls + 1,
            rule.fault if rule else PLAIN,
        )
        far_end.journal.arrived(
            request_id=request.headers.get(b"x-client-request-id", b"").decode("latin-1") or None,
            path=asked.path,
            method=asked.method,
            wire=asked.wire,
            model=None,
            stream=None,
            content_type=asked.content_type,
            beta=request.headers.get(b"anthropic-beta", b"").decode("latin-1") or None,
            sha256=hashlib.sha256(request.body).hexdigest(),
            bytes_in=len(request.body),
            auth=auth,
            auth_hash=auth_hash,
            canary=None,
            fault=rule.given if rule else None,
        )
        reply = Reply(self, request, asked.number)
        reply.send_more(far_end.kept.answer(asked))

    async def answer_other(self, request: Request) -> None:
        """Answer the control API and the list of models; neither is a call, so neither is journalled."""
        path = request.path.decode("latin-1")
        status, content = 200, {"object": "list", "data": [{"id": "fake-1", "object": "model", "owned_by": "fake"}]}
        if path != "/v1/models":
            status, content = await control(self.far_end, request.method.decode(), path, request.body)
        body = dumps(content)
        self.transport.write(head(status, content_length=len(body), content_type="application/json") + body)

    def start(self, work: Coroutine[Any, Any, None], *, at_end: Callable[[], None] = lambda: None) -> None:
        """Answer in a task of its own; `at_end` is called even where it is cancelled before its first step."""
        self.task = asyncio.get_running_loop().create_task(work)
        self.task.add_done_callback(lambda task: self.done(task, at_end))

    def done(self, task: asyncio.Task[None], at_end: Callable[[], None]) -> None:
        """Turn to the next request of this connection."""
        self.task = None
        at_end()
        if not task.cancelled() and (failure := task.exception()) is not None:
            self.transport.abort()
            raise failure
        while self.waiting and self.task is None and not self.transport.is_closing():
            self.answer(self.waiting.popleft())


class Reply:
    """The sending of one reply, and its line in the journal."""

    def __init__(self, connection: Connection, request: Request, number: int) -> None:
        self.connection = connection
        self.journal = connection.far_end.journal
        self.keep_alive = request.keep_alive
        self.number = number
        self.bytes_out = 0
        self.output_tokens = 0
        self.input_tokens = 0
        self.usage: Any = None
        self.status = 0
        self.outcome = "aborted"

    def send_good(self, ask: replies.Ask) -> None:
        """Send a reply without any fault, in one go."""
        self.input_tokens = ask.input_tokens
        if not ask.stream:
            self.send_whole(200, replies.body(ask))
            return
        self.status = 200
        writes = [head(200, number=self.number, content_type="text/event-stream")]
        for piece in replies.events(ask):
            writes.append(b"%x\r\n%b\r\n" % (len(piece.data), piece.data))
            self.count(piece)
        writes.append(b"0\r\n\r\n")
        self.connection.transport.writelines(writes)
        self.outcome = "finished"
        self.end()

    def send_whole(self, status: int, piece: replies.Piece) -> None:
        """Send a body of known length at once."""
        self.status = status
        start = head(status, number=self.number, content_length=len(piece.data), content_type="application/json")
        self.connection.transport.write(start + piece.data)
        self.count(piece)
        self.outcome = "finished"
        self.end()

    def send_more(self, answer: more.Answer) -> None:
        """Send the answer of another endpoint, whole or as a stream, in one go."""
        self.status, self.usage = answer.status, answer.usage
        length = None if answer.streams else sum(len(piece) for piece in answer.pieces)
        writes = [head(answer.status, number=self.number, content_length=length, content_type=answer.content_type)]
        for piece in answer.pieces:
            writes.append(b"%x\r\n%b\r\n" % (len(piece), piece) if answer.streams else piece)
            self.bytes_out += len(piece)
        writes.append(b"0\r\n\r\n" if answer.streams else b"")
        self.connection.transport.writelines(writes)
        self.outcome = "finished"
        self.end()

    async def send(self, ask: replies.Ask) -> None:
        """Send a reply as its fault wants it; whoever starts this calls `end` afterwards."""
        if ask.fault.status in {None, 200}:
            self.input_tokens = ask.input_tokens
        if await self.send_faulty(ask):
            self.outcome = "finished"

    async def send_faulty(self, ask: replies.Ask) -> bool:
        """Send, and return whether everything left."""
        fault = ask.fault
        await asyncio.sleep(fault.latency_ms / 1000)
        if fault.drop:
            await self.leave(fault.drop)
            return False
        if fault.hang == "before_headers":
            await hang(fault)
        self.status = fault.status or 200
        streams = ask.stream and self.status == HTTPStatus.OK
        pieces = body_pieces(ask, self.status, streams=streams)
        framing = fault.framing or ("chunked" if streams or fault.trailers else "length")
        length = sum(len(piece.data) for piece in pieces) if framing == "length" else None
        if length is not None and fault.cut == "end" and fault.cut_after_bytes is not None:
            length = min(length, fault.cut_after_bytes)
        self.connection.transport.write(
            head(
                self.status,
                number=self.number,
                content_length=length,
                content_type=fault.content_type or ("text/event-stream" if streams else "application/json"),
                fault=fault,
                framing=framing,
            )
        )
        if framing == "close":
            self.keep_alive = False
        if fault.hang == "after_headers":
            await hang(fault)
        chunked = framing == "chunked"
        if await self.send_pieces(pieces, ask, chunked=chunked):
            return True
        await self.leave(fault.cut, chunked=chunked)
        return False

    async def send_pieces(self, pieces: list[replies.Piece], ask: replies.Ask, *, chunked: bool) -> bool:
        """Write the body; returns False where the fault cuts it."""
        fault = ask.fault
        for index, piece in enumerate(pieces):
            if fault.hang == "mid_stream" and index == fault.after:
                await hang(fault)
            if fault.error_after == index:
                await self.write(replies.error_event(ask.wire).data, chunked=chunked)
                break
            if fault.cut_after_chunks == index:
                return False
            for part in split(piece.data, fault.split_bytes):
                room = None if fault.cut_after_bytes is None else fault.cut_after_bytes - self.bytes_out
                if room is not None and room <= len(part):
                    await self.write(part[:room], chunked=chunked)
                    self.bytes_out += room
                    return False
                await self.write(part, chunked=chunked)
                self.bytes_out += len(part)
                # Even at no pace a pause: parts that are written in one turn of the loop would leave as one.
                await asyncio.sleep(fault.pace_ms / 1000)
            self.output_tokens += piece.output_tokens
            self.usage = piece.usage or self.usage
        if chunked:
            self.connection.transport.write(b"0\r\n%b\r\n" % lines(fault.trailers))
        return True

    async def write(self, data: bytes, *, chunked: bool) -> None:
        await self.connection.writable.wait()
        if data:
            self.connection.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)

    async def leave(self, how: str, *, chunked: bool = False) -> None:
        """End the connection, or only the HTTP message ("end")."""
        transport = self.connection.transport
        if how == "end":
            if chunked:
                transport.write(b"0\r\n\r\n")
        elif how == "reset":
            # What is still on its way would be lost with the reset: let the client read it first.
            await asyncio.sleep(0.02)
            reset(transport)
        else:
            transport.close()

    def count(self, piece: replies.Piece) -> None:
        self.bytes_out += len(piece.data)
        self.output_tokens += piece.output_tokens
        self.usage = piece.usage or self.usage

    def end(self) -> None:
        """Journal the end, and close the connection if the client wanted so."""
        self.journal.ended(
            self.number,
            outcome=self.outcome,
            status=self.status or None,
            bytes_out=self.bytes_out,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            usage=self.usage,
        )
        if not self.keep_alive:
            self.connection.transport.close()


PLAIN = Fault()


async def control(far_end: FarEnd, method: str, path: str, body: bytes) -> tuple[int, Any]:
    """Answer the control API: returns a status and JSON content."""
    try:
        match method, path:
            case "POST", "/_script":
                far_end.script.add(loads(body))
            case "DELETE", "/_script":
                far_end.script.clear()
            case "POST", "/_listen":
                await far_end.listen(open_door=bool(loads(body)["open"]))
            case "POST", "/_slam":
                far_end.slam(int(loads(body)["times"]))
            case "POST", "/_finish":
                far_end.kept.finish(loads(body))
            case "GET", "/_journal":
                return 200, far_end.journal.entries()
            case "GET", "/_looks":
                return 200, far_end.looks
            case "GET", "/_journal/count":
                return 200, far_end.journal.counts
            case _:
                return 404, {"error": "no such route"}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return 400, {"error": str(error)}
    return 200, {"rules": len(far_end.script.rules)}


def body_pieces(ask: replies.Ask, status: int, *, streams: bool) -> list[replies.Piece]:
    """Return the body in the pieces at which faults can strike."""
    pieces = good_pieces(ask, status, streams=streams)
    return [dressed(piece, ask.fault, at) for at, piece in enumerate(pieces)] if streams else pieces


def dressed(piece: replies.Piece, fault: Fault, at: int) -> replies.Piece:
    """Return an event with what else a stream may hold around it."""
    mark = b"\xef\xbb\xbf" if fault.bom and at == 0 else b""
    data = (fault.before_each.encode() + piece.data).replace(b"\n", fault.newline.encode())
    return piece._replace(data=mark + data)


def good_pieces(ask: replies.Ask, status: int, *, streams: bool) -> list[replies.Piece]:
    """Return the body in the pieces at which faults can strike, as it is before these."""
    if ask.fault.raw is not None:
        return [replies.Piece(base64.b64decode(ask.fault.raw))]
    if ask.fault.body is not None:
        # surrogatepass: a body that is not even UTF-8 can be asked for by a lone surrogate
        raw = ask.fault.body.encode("utf-8", "surrogatepass")
        return (
            [replies.Piece(event + b"\n\n") for event in raw.split(b"\n\n") if event]
            if streams
            else [replies.Piece(raw)]
        )
    if status != HTTPStatus.OK:
        return [replies.Piece(replies.error(ask.wire, status))]
    if streams:
        return list(replies.events(ask))
    whole = replies.body(ask)
    if ask.fault.hang == "mid_stream":
        middle = len(whole.data) // 2
        return [replies.Piece(whole.data[:middle]), whole._replace(data=whole.data[middle:])]
    return [whole]


def split(data: bytes, size: int | None) -> Iterator[bytes]:
    """Yield parts of `size` bytes, or all of it."""
    if size is None:
        yield data
        return
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def hang(fault: Fault) -> None:
    """Be silent; without a limit until the client leaves, which cancels this task."""
    if fault.hang_seconds is None:
        await asyncio.get_running_loop().create_future()
    else:
        await asyncio.sleep(fault.hang_seconds)


def head(
    status: int,
    *,
    content_type: str,
    content_length: int | None = None,
    number: int | None = None,
    fault: Fault = PLAIN,
    framing: str = "chunked",
) -> bytes:
    """Return a reply's status line and headers; no length means `framing`."""
    length = b"content-length: %d" % content_length if content_length is not None else ENDS[framing]
    request_id = b"" if number is None else b"x-request-id: req_%d\r\nrequest-id: req_%d\r\n" % (number, number)
    start = status_and_type(status, content_type)
    return b"%b%b%b%b\r\n\r\n" % (start, request_id, more_headers(fault) if fault is not PLAIN else b"", length)


@cache
def status_and_type(status: int, content_type: str) -> bytes:
    """Return the part of the head that is the same for most replies."""
    reason = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Overloaded"
    return f"HTTP/1.1 {status} {reason}\r\ncontent-type: {content_type}\r\n".encode("latin-1")


def more_headers(fault: Fault) -> bytes:
    """Return the headers that a fault adds."""
    added = dict(fault.headers)
    if fault.retry_after is not None:
        added["retry-after"] = fault.retry_after
    return lines(added)


def lines(headers: Mapping[str, str | list[str]]) -> bytes:
    """Return header lines; a list makes several of one name."""
    several = ((name, one) for name, given in headers.items() for one in ([given] if isinstance(given, str) else given))
    return b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in several)


def reset(transport: asyncio.Transport) -> None:
    """Break the connection so that the client gets RST."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    transport.abort()


@lru_cache(1024)
def credential(authorization: bytes | None, x_api_key: bytes | None) -> tuple[str | None, str | None]:
    """Return how a call authenticates and a short hash of the key, never the key."""
    if x_api_key is not None:
        return "x-api-key", short_hash(x_api_key)
    if authorization is not None:
        return "bearer", short_hash(authorization.partition(b" ")[2])
    return None, None


def short_hash(key: bytes) -> str:
    """Return enough of a hash to tell keys apart."""
    return hashlib.sha256(key).hexdigest()[:12]


@contextlib.asynccontextmanager
async def serving(far_end: FarEnd) -> AsyncIterator[int]:
    """Serve calls, and the control API on a door of its own, which stays open when calls are refused."""
    await far_end.listen(open_door=True)
    loop = asyncio.get_running_loop()
    control_door = await loop.create_server(lambda: Connection(far_end, is_control=True), "127.0.0.1", 0)
    try:
        yield control_door.sockets[0].getsockname()[1]
    finally:
        control_door.close()
        await far_end.listen(open_door=False)
