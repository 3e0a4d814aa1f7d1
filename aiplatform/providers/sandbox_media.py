"""The sandbox beyond chat: embeddings, moderations, images, audio and counting; deterministic, like all of it.

A vector comes from a hash of its text, a picture is always the same pixel, speech is silence of a second for each fifteen
characters, and a transcription says how many bytes it heard. Nothing is kept: files and batches are refused.
"""

import base64
import email.policy
import hashlib
import json
import math
import struct
from collections.abc import Iterator
from email.parser import BytesParser
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aiplatform.providers import sandbox
from aiplatform.providers.sandbox import Json, count_tokens, json_object, model_name

DIMENSIONS = 8
MOST_IMAGES = 10
USUAL_MODERATION = "omni-moderation-latest"
IMAGE_TOKENS = {"low": 272, "medium": 1056, "high": 4160}
PICTURE_TOKENS = 85
SPEECH_HZ, CHARACTERS_A_SECOND, TOKENS_A_SECOND = 8000, 15, 20
# One transparent pixel.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
KEEPS_NOTHING = "The sandbox keeps nothing between calls; use a key of another environment for files and batches."


def routes() -> list[Route]:
    """What the sandbox answers beside chat, messages and models."""
    answers = {
        "/v1/embeddings": embeddings,
        "/v1/moderations": moderations,
        "/v1/images/generations": images,
        "/v1/images/edits": images,
        "/v1/audio/speech": speech,
        "/v1/audio/transcriptions": transcription,
        "/v1/audio/translations": transcription,
    }
    return [
        *(Route(path, answering(answer), methods=["POST"]) for path, answer in answers.items()),
        Route("/v1/messages/count_tokens", counting, methods=["POST"]),
        Route("/{path:path}", kept, methods=["GET", "POST", "DELETE"]),
    ]


def answering(answer: Any) -> Any:
    """An endpoint of OpenAI's wire; what cannot be read is a 400."""

    async def handle(request: Request) -> Response:
        body = await request.body()
        kind = request.headers.get("content-type", "")
        try:
            given = form(kind, body) if kind.startswith("multipart/") else json_object(body)
            if answer is not moderations:  # which has a usual model
                model_name(given)
            found: Response = answer(given)
        except ValueError as error:
            return sandbox.openai_error(400, str(error))
        found.headers["x-request-id"] = f"req_{hashlib.sha256(body).hexdigest()[:24]}"
        return found

    return handle


async def counting(request: Request) -> Response:
    """https://platform.claude.com/docs/en/api/messages-count-tokens."""
    try:
        body = json.loads(await request.body())
        prompt = sandbox.anthropic_prompt(json.dumps(body | {"max_tokens": 1}).encode())
    except (ValueError, TypeError) as error:
        return sandbox.anthropic_error(400, str(error))
    return sandbox.json_response({"input_tokens": prompt.input_tokens + prompt.image_tokens})


async def kept(request: Request) -> Response:
    """Files and batches, which need a memory."""
    is_anthropic = "anthropic-version" in request.headers
    return (sandbox.anthropic_error if is_anthropic else sandbox.openai_error)(404, KEEPS_NOTHING)


def form(kind: str, body: bytes) -> Json:
    """The fields of a form; a file as its bytes, several pictures as a list."""
    message = BytesParser(policy=email.policy.HTTP).parsebytes(f"content-type: {kind}\r\n\r\n".encode() + body)
    found: Json = {}
    for part in message.iter_parts():
        name = str(part.get_param("name", header="content-disposition")).removesuffix("[]")
        data = part.get_payload(decode=True)
        if not isinstance(data, bytes):
            raise ValueError("The form cannot be read.")  # noqa: TRY004 - answered 400 like all else
        if part.get_filename() is None:
            found[name] = data.decode(errors="replace")
        else:
            found.setdefault(name, []).append(data)
    return found


def embeddings(body: Json) -> Response:
    """https://platform.openai.com/docs/api-reference/embeddings."""
    given = body.get("input")
    if not isinstance(given, str | list) or not given:
        raise ValueError("input: Field required")
    inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    vectors = [vector(one) for one in inputs]
    if body.get("encoding_format") == "base64":
        shown: list[Any] = [base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *one)).decode() for one in vectors]
    else:
        shown = vectors
    tokens = sum(len(one) if isinstance(one, list) else count_tokens(str(one)) for one in inputs)
    data = [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(shown)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return sandbox.json_response({"object": "list", "data": data, "model": body["model"], "usage": usage})


def vector(of: Any) -> list[float]:
    """Of length 1."""
    digest = hashlib.sha256(json.dumps(of).encode()).digest()[:DIMENSIONS]
    raw = [byte - 127.5 for byte in digest]
    length = math.sqrt(sum(one * one for one in raw))
    return [round(one / length, 6) for one in raw]


def moderations(body: Json) -> Response:
    """https://platform.openai.com/docs/api-reference/moderations: nothing is ever flagged."""
    given = body.get("input")
    inputs = given if isinstance(given, list) and all(isinstance(one, str) for one in given) else [given]
    names = ("harassment", "hate", "self-harm", "sexual", "violence")
    result = {
        "flagged": False,
        "categories": dict.fromkeys(names, False),
        "category_scores": dict.fromkeys(names, 0.0),
        "category_applied_input_types": {name: ["text"] for name in names},
    }
    return sandbox.json_response(
        {"id": "modr-sandbox", "model": body.get("model", USUAL_MODERATION), "results": [result] * len(inputs)}
    )


def images(body: Json) -> Response:
    """https://platform.openai.com/docs/api-reference/images."""
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise ValueError("prompt: Field required")
    count = int(body["n"]) if str(body.get("n", "")).isdigit() else 1
    if not 1 <= count <= MOST_IMAGES:
        raise ValueError(f"n: Input should be from 1 to {MOST_IMAGES}")
    shown = PICTURE_TOKENS * (len(body.get("image") or ()) + len(body.get("mask") or ()))
    text, made = count_tokens(prompt), IMAGE_TOKENS.get(str(body.get("quality")), IMAGE_TOKENS["medium"]) * count
    usage = {
        "input_tokens": text + shown,
        "output_tokens": made,
        "total_tokens": text + shown + made,
        "input_tokens_details": {"text_tokens": text, "image_tokens": shown},
    }
    if body.get("stream") in (True, "true"):
        return sandbox.event_stream(image_events(body, usage), {})
    return sandbox.json_response({"created": sandbox.EPOCH, "data": [{"b64_json": PIXEL}] * count, "usage": usage})


def image_events(body: Json, usage: Json) -> Iterator[bytes]:
    """Partial images as many as were asked for, then the whole one."""
    kind = "image_edit" if body.get("image") else "image_generation"
    partial = body.get("partial_images") or 0
    picture = {"b64_json": PIXEL, "created_at": sandbox.EPOCH, "output_format": "png"}
    for at in range(int(partial) if str(partial).isdigit() else 0):
        yield sandbox.named_event(f"{kind}.partial_image", picture | {"partial_image_index": at})
    yield sandbox.named_event(f"{kind}.completed", picture | {"usage": usage})


def speech(body: Json) -> Response:
    """https://platform.openai.com/docs/api-reference/audio/createSpeech; always WAV."""
    said = body.get("input")
    if not isinstance(said, str) or not said:
        raise ValueError("input: Field required")
    seconds = -(-len(said) // CHARACTERS_A_SECOND)
    sound = silence(seconds)
    if body.get("stream_format") != "sse":
        return Response(sound, media_type="audio/wav")
    made, given = seconds * TOKENS_A_SECOND, count_tokens(said)
    usage = {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
    encoded = base64.b64encode(sound).decode()
    events = [
        sandbox.named_event("speech.audio.delta", {"audio": encoded}),
        sandbox.named_event("speech.audio.done", {"usage": usage}),
    ]
    return sandbox.event_stream(events, {})


def silence(seconds: int) -> bytes:
    """PCM of 8 bits."""
    size = seconds * SPEECH_HZ
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, SPEECH_HZ, SPEECH_HZ, 1, 8,
                       b"data", size)  # fmt: skip
    return head + b"\x80" * size


def transcription(body: Json) -> Response:
    """https://platform.openai.com/docs/api-reference/audio/createTranscription."""
    file = body.get("file")
    if not isinstance(file, list):
        raise ValueError("file: Field required")  # noqa: TRY004 - answered 400 like all else
    text, seconds = f"sandbox: {len(file[0])} bytes", -(-len(file[0]) // SPEECH_HZ)
    usage = {"type": "duration", "seconds": seconds}
    if body.get("stream") == "true":
        events = [
            sandbox.named_event("transcript.text.delta", {"delta": text}),
            sandbox.named_event("transcript.text.done", {"text": text, "usage": usage}),
        ]
        return sandbox.event_stream(events, {})
    match body.get("response_format", "json"):
        case "json":
            return sandbox.json_response({"text": text, "usage": usage})
        case "verbose_json":
            return sandbox.json_response(
                {"task": "transcribe", "language": "english", "duration": float(seconds), "text": text, "segments": []}
            )
        case "srt":
            return Response(f"1\n00:00:00,000 --> 00:00:01,000\n{text}\n\n", media_type="text/plain")
        case "vtt":
            return Response(f"WEBVTT\n\n00:00.000 --> 00:01.000\n{text}\n\n", media_type="text/plain")
        case "text":
            return Response(f"{text}\n", media_type="text/plain")
    raise ValueError("response_format: unknown")
