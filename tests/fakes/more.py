"""What the far end says on its other endpoints: embeddings, images, audio, counting, files and batches.

A batch waits until the control API says `POST /_finish {"id": …, "status": …, "lines": n}`: then its first n lines are
answered as plain calls, by the rule of tokens in `replies`, and the others not at all.
"""

import base64
import email.policy
import hashlib
from email.parser import BytesParser
from typing import Any, NamedTuple

from tests.fakes import replies
from tests.fakes.codec import dumps, loads
from tests.fakes.faults import Fault

CREATED = replies.CREATED
IMAGE_TOKENS = {"low": 272, "medium": 1056, "high": 4160}
PICTURE = base64.b64encode(b"\x89PNG\r\n\x1a\n picture").decode()
SECONDS = 9

Json = dict[str, Any]


class Request(NamedTuple):
    """One request, read as far as its endpoint needs."""

    method: str
    path: str
    wire: str
    content_type: str
    body: bytes
    number: int
    fault: Fault


class Answer(NamedTuple):
    """A whole body, or the events of a stream."""

    status: int
    content_type: str
    pieces: list[bytes]
    streams: bool = False
    usage: Any = None


def is_known(method: str, path: str) -> bool:
    """Whether this is an endpoint of this module."""
    rest = path.partition("?")[0]
    if method == "POST" and rest in POSTS:
        return True
    return rest.startswith(("/v1/files", "/v1/batches", "/v1/messages/batches"))


class Kept:
    """Files and batches; one account, as a provider has it."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[Json, bytes]] = {}
        self.batches: dict[str, Json] = {}
        self.requests: dict[str, list[Json]] = {}
        self.results: dict[str, bytes] = {}

    def answer(self, request: Request) -> Answer:
        """Answer one request, or as its fault wants it."""
        fault = request.fault
        if fault.status not in {None, 200}:
            return Answer(fault.status or 500, "application/json", [replies.error(request.wire, fault.status or 500)])
        path = request.path.partition("?")[0]
        try:
            found = POSTS[path](request) if request.method == "POST" and path in POSTS else self.about(request, path)
        except (KeyError, ValueError):
            return Answer(404, "application/json", [replies.error(request.wire, 404)])
        return found if fault.body is None else found._replace(pieces=[fault.body.encode("utf-8", "surrogatepass")])

    def about(self, request: Request, path: str) -> Answer:
        """Answer about files and batches; raises KeyError where there is no such thing."""
        if path.startswith("/v1/files"):
            return self.about_file(request, path.split("/")[3:])
        parts = path.removeprefix("/v1/messages").split("/")[2:] if request.wire == "anthropic" else path.split("/")[3:]
        return self.about_batch(request, [part for part in parts if part != "batches"])

    def about_file(self, request: Request, parts: list[str]) -> Answer:
        """Upload, show, give or delete."""
        match request.method, parts:
            case "POST", []:
                return whole(self.keep(request))
            case "GET", [name]:
                return whole(self.files[name][0])
            case "GET", [name, "content"]:
                return Answer(200, "application/octet-stream", [self.files[name][1]])
            case "DELETE", [name]:
                del self.files[name]
                if request.wire == "anthropic":
                    return whole({"id": name, "type": "file_deleted"})
                return whole({"id": name, "object": "file", "deleted": True})
        raise KeyError(request.path)

    def keep(self, request: Request) -> Json:
        """Store an upload."""
        fields, files = form(request)
        filename, data = files["file"][0]
        name = f"file-{request.number}{hashlib.sha256(data).hexdigest()[:8]}"
        if request.wire == "anthropic":
            shown: Json = {"id": name, "type": "file", "filename": filename, "mime_type": "text/plain",
                           "size_bytes": len(data), "created_at": "2026-01-01T00:00:00Z", "downloadable": False}  # fmt: skip
        else:
            shown = {"id": name, "object": "file", "bytes": len(data), "created_at": CREATED, "filename": filename,
                     "purpose": fields.get("purpose", ["assistants"])[0], "status": "processed"}  # fmt: skip
        shown |= request.fault.extra
        self.files[name] = (shown, data)
        return shown

    def about_batch(self, request: Request, parts: list[str]) -> Answer:
        """Create, show, cancel, or give the results."""
        match request.method, parts:
            case "POST", []:
                return whole(self.begin(request))
            case "GET", [name]:
                return whole(self.batches[name])
            case "GET", [name, "results"]:
                return Answer(200, "application/x-jsonl", [self.results[name]])
            case "POST", [name, "cancel"]:
                shown = self.batches[name]
                shown["processing_status" if request.wire == "anthropic" else "status"] = (
                    "canceling" if request.wire == "anthropic" else "cancelling"
                )
                return whole(shown)
            case "DELETE", [name]:
                del self.batches[name]
                return whole({"id": name, "type": "message_batch_deleted"})
        raise KeyError(request.path)

    def begin(self, request: Request) -> Json:
        """Take a batch in; nothing of it is done yet."""
        asked = loads(request.body)
        if request.wire == "anthropic":
            name = f"msgbatch_{request.number}"
            self.requests[name] = asked["requests"]
            shown: Json = {"id": name, "type": "message_batch", "processing_status": "in_progress", "results_url": None,
                           "request_counts": {"processing": len(asked["requests"]), "succeeded": 0, "errored": 0,
                                              "canceled": 0, "expired": 0},
                           "created_at": "2026-01-01T00:00:00Z", "expires_at": "2026-01-02T00:00:00Z", "ended_at": None,
                           "archived_at": None, "cancel_initiated_at": None}  # fmt: skip
        else:
            name = f"batch_{request.number}"
            data = self.files[asked["input_file_id"]][1]
            self.requests[name] = [loads(line) for line in data.splitlines() if line.strip()]
            shown = {"id": name, "object": "batch", "endpoint": asked["endpoint"], "status": "validating",
                     "input_file_id": asked["input_file_id"], "completion_window": "24h", "created_at": CREATED,
                     "output_file_id": None, "error_file_id": None, "metadata": asked.get("metadata")}  # fmt: skip
        self.batches[name] = shown
        return shown

    def finish(self, order: Json) -> None:
        """End a batch as the control API says."""
        name, status = order["id"], order["status"]
        done = self.requests[name][: order.get("lines", len(self.requests[name]))]
        shown = self.batches[name]
        if name.startswith("msgbatch_"):
            lines = [self.message(at, one, order) for at, one in enumerate(self.requests[name])]
            self.results[name] = b"".join(dumps(line) + b"\n" for line in lines)
            shown["request_counts"] |= {"processing": 0, "succeeded": len(done)}
            shown |= {"processing_status": "ended", "results_url": f"/v1/messages/batches/{name}/results",
                      "ended_at": "2026-01-01T01:00:00Z"}  # fmt: skip
            return
        shown["status"] = status
        shown["request_counts"] = {"total": len(self.requests[name]), "completed": len(done), "failed": 0}
        if done:
            output = f"file-out-{name}"
            data = b"".join(dumps(self.line(at, one)) + b"\n" for at, one in enumerate(done))
            self.files[output] = ({"id": output, "object": "file", "bytes": len(data), "created_at": CREATED,
                                   "filename": "out.jsonl", "purpose": "batch_output", "status": "processed"}, data)  # fmt: skip
            shown["output_file_id"] = output

    def line(self, number: int, asked: Json) -> Json:
        """One line of an output file."""
        ask = asking("openai", number, asked["body"])
        reply, usage = replies.openai_reply(ask)
        body = reply | {"usage": usage}
        return {"id": f"batch_req_{number}", "custom_id": asked["custom_id"], "error": None,
                "response": {"status_code": 200, "request_id": f"req_{number}", "body": body}}  # fmt: skip

    def message(self, number: int, asked: Json, order: Json) -> Json:
        """One line of a message batch's results; those beyond `lines` expired or were cancelled."""
        if number >= order.get("lines", len(asked) + number + 1):
            return {"custom_id": asked["custom_id"], "result": {"type": order["status"]}}
        ask = asking("anthropic", number, asked["params"])
        reply, usage = replies.anthropic_reply(ask)
        usage |= {"service_tier": "batch"}
        return {"custom_id": asked["custom_id"], "result": {"type": "succeeded", "message": reply | {"usage": usage}}}


def asking(wire: str, number: int, body: Json) -> replies.Ask:
    """A line of a batch, as a call."""
    return replies.read(wire, number, dumps(body), canary="", output_tokens=8, fault=Fault())


def embeddings(request: Request) -> Answer:
    """https://platform.openai.com/docs/api-reference/embeddings."""
    asked = loads(request.body)
    given = asked["input"]
    inputs = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
    counts = [len(one) if isinstance(one, list) else -(-len(one) // 4) for one in inputs]
    vector: Any = [0.25, -0.5, 0.125]
    if asked.get("encoding_format") == "base64":
        vector = base64.b64encode(b"\x00\x00\x80\x3e\x00\x00\x00\xbf\x00\x00\x00\x3e").decode()
    data = [{"object": "embedding", "index": at, "embedding": vector} for at in range(len(inputs))]
    usage = {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
    return billed(request, {"object": "list", "data": data, "model": asked["model"]}, usage)


def moderations(request: Request) -> Answer:
    """https://platform.openai.com/docs/api-reference/moderations."""
    asked = loads(request.body)
    result = {"flagged": False, "categories": {"violence": False}, "category_scores": {"violence": 0.001}}
    return whole(
        {"id": f"modr-{request.number}", "model": asked.get("model", "omni-moderation-latest"), "results": [result]}
    )


def images(request: Request) -> Answer:
    """https://platform.openai.com/docs/api-reference/images."""
    asked, pictures = picture_order(request)
    count, tokens = int(asked.get("n") or 1), IMAGE_TOKENS.get(asked.get("quality") or "", 1056)
    text = -(-len(asked["prompt"]) // 4)
    usage = {"input_tokens": text + 300 * pictures, "output_tokens": tokens * count,
             "total_tokens": text + 300 * pictures + tokens * count,
             "input_tokens_details": {"text_tokens": text, "image_tokens": 300 * pictures}}  # fmt: skip
    if str(asked.get("stream")).lower() == "true":
        kind = "image_edit" if pictures else "image_generation"
        partial = {
            "type": f"{kind}.partial_image",
            "b64_json": PICTURE,
            "partial_image_index": 0,
            "created_at": CREATED,
        }
        last = {"type": f"{kind}.completed", "b64_json": PICTURE, "created_at": CREATED, "usage": usage}
        return events([partial] * int(asked.get("partial_images") or 0) + [last], usage)
    reply = {"created": CREATED, "data": [{"b64_json": PICTURE} for _ in range(count)]}
    return whole(reply) if asked["model"].startswith("dall-e") else billed(request, reply, usage)


def picture_order(request: Request) -> tuple[Json, int]:
    """The fields of an order, and how many pictures came with it."""
    if not request.content_type.startswith("multipart"):
        return loads(request.body), 0
    fields, files = form(request)
    return {name: values[0] for name, values in fields.items()}, sum(len(found) for found in files.values())


def speech(request: Request) -> Answer:
    """https://platform.openai.com/docs/api-reference/audio/createSpeech."""
    asked = loads(request.body)
    sound = bytes(range(256)) * 300
    usage = {"input_tokens": -(-len(asked["input"]) // 4), "output_tokens": len(asked["input"]),
             "total_tokens": len(asked["input"]) + -(-len(asked["input"]) // 4)}  # fmt: skip
    if asked.get("stream_format") == "sse":
        delta = {"type": "speech.audio.delta", "audio": base64.b64encode(sound[:1024]).decode()}
        return events([delta, {"type": "speech.audio.done", "usage": usage}], usage)
    return Answer(200, "audio/mpeg", [sound])


def transcriptions(request: Request) -> Answer:
    """https://platform.openai.com/docs/api-reference/audio/createTranscription."""
    fields, files = form(request)
    model, shape = fields["model"][0], fields.get("response_format", ["json"])[0]
    assert files["file"]
    if model.startswith("whisper"):
        usage: Json = {"type": "duration", "seconds": SECONDS}
    else:
        usage = {"type": "tokens", "input_tokens": 95, "output_tokens": 12, "total_tokens": 107,
                 "input_token_details": {"text_tokens": 5, "audio_tokens": 90}}  # fmt: skip
    if fields.get("stream", ["false"])[0] == "true":
        delta = {"type": "transcript.text.delta", "delta": "said "}
        return events([delta, {"type": "transcript.text.done", "text": "said ", "usage": usage}], usage)
    if shape in {"text", "srt", "vtt"}:
        return Answer(200, "text/plain; charset=utf-8", [b"1\n00:00:00,000 --> 00:00:09,000\nsaid\n"])
    if shape == "verbose_json":
        return whole({"task": "transcribe", "language": "english", "duration": SECONDS - 0.4, "text": "said"})
    return billed(request, {"text": "said"}, usage)


def counting(request: Request) -> Answer:
    """https://platform.claude.com/docs/en/api/messages-count-tokens."""
    return whole({"input_tokens": replies.input_tokens(loads(request.body))})


POSTS = {
    "/v1/embeddings": embeddings,
    "/v1/moderations": moderations,
    "/v1/images/generations": images,
    "/v1/images/edits": images,
    "/v1/audio/speech": speech,
    "/v1/audio/transcriptions": transcriptions,
    "/v1/audio/translations": transcriptions,
    "/v1/messages/count_tokens": counting,
}


def form(request: Request) -> tuple[dict[str, list[str]], dict[str, list[tuple[str, bytes]]]]:
    """The fields and files of a form, by the standard library's parser and not by ours."""
    head = f"content-type: {request.content_type}\r\n\r\n".encode()
    message = BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
    fields: dict[str, list[str]] = {}
    files: dict[str, list[tuple[str, bytes]]] = {}
    for part in message.iter_parts():
        name = str(part.get_param("name", header="content-disposition"))
        data = part.get_payload(decode=True)
        assert isinstance(data, bytes)
        if filename := part.get_filename():
            files.setdefault(name, []).append((filename, data))
        else:
            fields.setdefault(name, []).append(data.decode())
    return fields, files


def whole(reply: Json, usage: Any = None) -> Answer:
    """A JSON reply."""
    return Answer(200, "application/json", [dumps(reply)], usage=usage)


def billed(request: Request, reply: Json, usage: Any) -> Answer:
    """A JSON reply that tells its usage, unless a fault leaves it out or changes it."""
    told = request.fault.usage
    if told == "missing":
        return whole(reply | request.fault.extra)
    shown = told if isinstance(told, dict) else usage
    return whole(reply | {"usage": shown} | request.fault.extra, shown)


def events(told: list[Json], usage: Any) -> Answer:
    """A stream of named events."""
    pieces = [b"event: %s\ndata: %s\n\n" % (one["type"].encode(), dumps(one)) for one in told]
    return Answer(200, "text/event-stream", pieces, streams=True, usage=usage)
