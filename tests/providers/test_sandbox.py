"""The sandbox as users meet it: through the official SDKs, in-process."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from aiplatform.providers import sandbox

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def http_client() -> httpx2.AsyncClient:
    """Return a client whose other end is the sandbox in this process."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(sandbox.application()))


def on_openai(work: Callable[[Any], Awaitable[Any]]) -> Any:
    """Run `work` with an OpenAI client of the sandbox."""

    async def main() -> Any:
        url = "http://sandbox/v1"
        async with openai.AsyncOpenAI(
            api_key="unused", base_url=url, max_retries=0, http_client=http_client()
        ) as client:
            return await work(client)

    return asyncio.run(main())


def on_anthropic(work: Callable[[Any], Awaitable[Any]]) -> Any:
    """Run `work` with an Anthropic client of the sandbox."""

    async def main() -> Any:
        url = "http://sandbox"
        async with anthropic.AsyncAnthropic(
            api_key="unused", base_url=url, max_retries=0, http_client=http_client()
        ) as client:
            return await work(client)

    return asyncio.run(main())


def post(path: str, body: bytes) -> httpx2.Response:
    """Send raw bytes, as no SDK would."""

    async def main() -> httpx2.Response:
        async with http_client() as client:
            return await client.post(f"http://sandbox{path}", content=body)

    return asyncio.run(main())


def completion(**params: Any) -> Any:
    """Return a chat completion of the sandbox."""
    params = {"model": "sandbox-1", "messages": HELLO} | params
    return on_openai(lambda client: client.chat.completions.create(**params))


def message(**params: Any) -> Any:
    """Return a message of the sandbox."""
    params = {"model": "sandbox-1", "messages": HELLO, "max_tokens": 100} | params
    return on_anthropic(lambda client: client.messages.create(**params))


def test_a_completion_echoes_the_last_user_text_and_counts_four_characters_a_token() -> None:
    reply = completion(messages=[{"role": "system", "content": "12345"}, *HELLO])
    assert reply.choices[0].message.content == "sandbox: hello"
    assert reply.choices[0].finish_reason == "stop"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (2 + 2, 4, 8)


def test_a_message_echoes_the_last_user_text_and_counts_the_system_prompt() -> None:
    reply = message(system=[{"type": "text", "text": "12345"}])
    assert reply.content[0].text == "sandbox: hello"
    assert reply.stop_reason == "end_turn"
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (2 + 2, 4)


def test_images_and_sounds_are_counted_as_such() -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}
    sound = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    content = [{"type": "text", "text": "hello"}, picture, picture, sound]
    usage = completion(messages=[{"role": "user", "content": content}]).usage
    assert (usage.prompt_tokens, usage.prompt_tokens_details.image_tokens) == (2 + 170 + 30, 170)
    assert usage.prompt_tokens_details.audio_tokens == 30
    image = {"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}}
    assert message(messages=[{"role": "user", "content": [image, content[0]]}]).usage.input_tokens == 85 + 2


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_the_same_body_gets_the_same_bytes_and_another_body_does_not(path: str) -> None:
    body = {"model": "sandbox-1", "messages": HELLO, "max_tokens": 9}
    first, second = (post(path, json.dumps(body).encode()).content for _ in range(2))
    other = post(path, json.dumps(body | {"seed": 1}).encode()).content
    assert first == second != other


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_completion_stops_at_its_token_limit(field: str) -> None:
    reply = completion(**{field: 2})
    assert reply.choices[0].message.content == "sandbox:"
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 2


def test_a_message_stops_at_its_token_limit() -> None:
    reply = message(max_tokens=2)
    assert (reply.content[0].text, reply.stop_reason, reply.usage.output_tokens) == ("sandbox:", "max_tokens", 2)


def test_a_limit_of_exactly_the_reply_is_no_cut() -> None:
    assert completion(max_tokens=4).choices[0].finish_reason == "stop"


def test_each_of_n_choices_is_counted() -> None:
    reply = completion(n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert reply.usage.completion_tokens == 3 * 4


@pytest.mark.parametrize("include_usage", [True, False])
def test_a_streamed_completion_adds_up_to_the_plain_one(include_usage: bool) -> None:
    async def collect(client: Any) -> list[Any]:
        options = {"include_usage": True} if include_usage else openai.omit
        stream = await client.chat.completions.create(
            model="sandbox-1", messages=HELLO, stream=True, stream_options=options
        )
        return [chunk async for chunk in stream]

    chunks = on_openai(collect)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == "sandbox: hello"
    assert choices[-1].finish_reason == "stop"
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == ([4] if include_usage else [])


def test_a_streamed_message_adds_up_to_the_plain_one() -> None:
    async def collect(client: Any) -> Any:
        async with client.messages.stream(model="sandbox-1", messages=HELLO, max_tokens=100) as stream:
            events = [event.type async for event in stream]
            return events, await stream.get_final_message()

    events, reply = on_anthropic(collect)
    assert events[0] == "message_start"
    assert events[-1] == "message_stop"
    assert (reply.content[0].text, reply.stop_reason) == ("sandbox: hello", "end_turn")
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (2, 4)


def test_a_directive_in_the_prompt_or_the_model_makes_an_error_of_the_sdk() -> None:
    with pytest.raises(openai.RateLimitError) as limited:
        completion(messages=[{"role": "user", "content": "please sandbox:error:429 now"}])
    assert limited.value.response.headers["retry-after"] == "1"
    with pytest.raises(openai.InternalServerError):
        completion(model="sandbox:error:500")
    with pytest.raises(anthropic.OverloadedError):
        message(model="sandbox:error:529")


def test_only_the_last_user_text_can_hold_a_directive() -> None:
    turns = [{"role": "user", "content": "sandbox:error:500"}, {"role": "assistant", "content": "oh"}, *HELLO]
    assert completion(messages=turns).choices[0].message.content == "sandbox: hello"


def test_a_slow_directive_delays_the_reply() -> None:
    started = time.monotonic()
    completion(model="sandbox:slow:120ms")
    assert time.monotonic() - started >= 0.12


def test_the_models_are_listed_on_both_wires() -> None:
    async def names(client: Any) -> list[str]:
        return [model.id async for model in client.models.list()]

    assert on_openai(names) == on_anthropic(names) == list(sandbox.MODELS)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"model": "m"}',
        b'{"model": "m", "messages": []}',
        b'{"model": "m", "messages": ["hi"]}',
        b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}',
        b'{"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 0}',
        b'{"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": true}',
        b'{"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "stream_options": 1}',
        b'\xff{"model": "m"}',
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_bad_body_is_a_400_in_the_shape_of_the_wire(path: str, body: bytes) -> None:
    reply = post(path, body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_a_message_without_max_tokens_is_refused_as_the_real_wire_does() -> None:
    reply = post("/v1/messages", b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}')
    assert (reply.status_code, reply.json()["error"]["message"]) == (400, "max_tokens: Field required")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("text", ["a\\u0000b", "\\ud800 alone", "\\u20ac \\ud83d\\ude00"])
def test_odd_characters_come_back_as_they_went_in(path: str, text: str) -> None:
    body = b'{"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "%s"}]}' % text.encode()
    reply = post(path, body).json()
    said = reply["choices"][0]["message"]["content"] if "choices" in reply else reply["content"][0]["text"]
    assert said == "sandbox: " + json.loads(f'"{text}"')
