"""The sandbox beyond chat, through the whole system: free, deterministic, and without a provider."""

import io
import wave
from typing import Any

import openai
import pytest

from tests.gateway.records import settled
from tests.gateway.test_audio import sound
from tests.system import System

PICTURE = ("a.png", b"\x89PNG\r\n\x1a\n", "image/png")


@pytest.fixture
def key(system: System) -> str:
    return system.tenant(environment="sandbox").key


def test_a_vector_is_the_same_for_the_same_text_and_has_length_1(system: System, key: str) -> None:
    client = system.openai(key).embeddings
    one, same = (client.create(model="any", input=["a", "b"]).data for _ in range(2))
    assert one == same
    assert one[0].embedding != one[1].embedding
    assert sum(each**2 for each in one[0].embedding) == pytest.approx(1, abs=1e-4)


def test_images_speech_and_transcriptions_cost_nothing_and_reach_no_provider(system: System, key: str) -> None:
    before, client = system.far_end.count(), system.openai(key)
    assert client.moderations.create(input=["a", "b"]).results[1].flagged is False
    raw: Any = client.images.with_raw_response.generate(model="any", prompt="a cat", n=2)
    assert len(raw.parse().data) == 2
    call = settled(system, raw.headers)
    assert (call["charged_nano"], call["held_nano"], call["meters"]) == (0, 0, {"output_image": 2112})
    assert client.images.edit(model="any", prompt="bluer", image=PICTURE).data
    spoken = client.audio.speech.create(model="any", voice="alloy", input="x" * 31).read()
    with wave.open(io.BytesIO(spoken)) as file:
        assert file.getnframes() / file.getframerate() == 3
    said = client.audio.transcriptions.create(model="any", file=("a.wav", sound(1)))
    assert said.text == f"sandbox: {len(sound(1))} bytes"
    events = [event.type for event in client.images.generate(model="any", prompt="a", stream=True, partial_images=1)]
    assert events == ["image_generation.partial_image", "image_generation.completed"]
    assert system.anthropic(key).messages.count_tokens(model="any", messages=[{"role": "user", "content": "12345"}]).input_tokens == 2  # fmt: skip
    assert system.far_end.count() == before


def test_the_sandbox_keeps_nothing_and_says_so(system: System, key: str) -> None:
    with pytest.raises(openai.NotFoundError, match="keeps nothing"):
        system.openai(key).files.create(file=("a.txt", b"a"), purpose="assistants")
