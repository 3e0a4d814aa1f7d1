"""Speech and transcriptions by the official SDK: sound passes as it is, and is paid by its own unit."""

import io
import struct
import wave
from typing import Any

import openai
import pytest

from tests.gateway.records import direct, same_request, settled
from tests.system import Customer, System


def sound(seconds: float = 10) -> bytes:
    """PCM at 8 kHz."""
    found = io.BytesIO()
    with wave.open(found, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(struct.pack("<h", 300) * int(8000 * seconds))
    return found.getvalue()


def test_speech_is_charged_by_the_character_and_comes_byte_for_byte(media: System, customer: Customer) -> None:
    said = "Gr\u00fc\u00dfe an alle"
    with media.openai(customer.key).audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input=said
    ) as raw:
        ours = raw.read()
    theirs = direct(media, "POST", "/v1/audio/speech", json={"model": "tts-1", "voice": "alloy", "input": said}).content
    assert ours == theirs
    assert len(ours) > 65536  # more than a doorbell carries
    assert raw.headers["content-type"] == "audio/mpeg"
    call = settled(media, raw.headers)
    assert call["meters"] == {"input_characters": len(said)}
    assert call["charged_nano"] == call["held_nano"] == len(said) * 15_000


def test_speech_by_tokens_is_held_by_its_slowest_reading_and_counted_by_the_usual_one(
    media: System, customer: Customer
) -> None:
    raw = media.openai(customer.key).audio.speech.with_raw_response.create(
        model="gpt-4o-mini-tts", voice="alloy", input="x" * 150
    )
    call = settled(media, raw.headers)
    assert (call["evidence"], call["meters"]) == ("counted", {"output_audio": 11 * 21})
    assert call["held_nano"] > 5 * call["charged_nano"]


def test_streamed_speech_is_charged_by_its_last_event(media: System, customer: Customer) -> None:
    with media.openai(customer.key).audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="alloy", input="x" * 40, stream_format="sse"
    ) as raw:
        text = "".join(raw.iter_text())
    assert "event: speech.audio.delta" in text
    call = settled(media, raw.headers)
    assert (call["evidence"], call["meters"], call["input_tokens"]) == ("provider", {"output_audio": 40}, 10)
    assert call["charged_nano"] == 10 * 600 + 40 * 12_000


@pytest.mark.parametrize("shape", ["json", "verbose_json"])
def test_a_transcription_is_charged_by_the_second_that_its_provider_tells(
    media: System, customer: Customer, shape: Any
) -> None:
    raw = media.openai(customer.key).audio.transcriptions.with_raw_response.create(
        model="whisper-1", file=("a.wav", sound()), response_format=shape
    )
    call = settled(media, raw.headers)
    assert (call["evidence"], call["meters"]) == ("provider", {"input_seconds": 9})
    assert call["charged_nano"] == 9 * 100_000


@pytest.mark.parametrize("shape", ["text", "srt"])
def test_where_the_provider_tells_no_length_that_of_the_file_is_charged(
    media: System, customer: Customer, shape: Any
) -> None:
    form = {"model": "whisper-1", "response_format": shape}
    reply = media.http(customer.key).post("/v1/audio/translations", data=form, files={"file": ("a.wav", sound(2.5))})
    assert reply.text.startswith("1\n00:00")
    assert reply.headers["content-type"].startswith("text/plain")
    call = settled(media, reply.headers)
    assert (call["evidence"], call["meters"]) == ("counted", {"input_seconds": 3})


def test_a_transcription_by_tokens_tells_sound_from_text(media: System, customer: Customer) -> None:
    raw = media.openai(customer.key).audio.transcriptions.with_raw_response.create(
        model="gpt-4o-transcribe", file=("a.wav", sound()), prompt="names"
    )
    call = settled(media, raw.headers)
    assert (call["input_tokens"], call["output_tokens"], call["meters"]) == (5, 12, {"input_audio": 90})
    assert call["charged_nano"] == 5 * 2500 + 12 * 10_000 + 90 * 6000


def test_a_streamed_transcription_ends_with_its_usage(media: System, customer: Customer) -> None:
    stream = media.openai(customer.key).audio.transcriptions.create(
        model="gpt-4o-transcribe", file=("a.wav", sound()), stream=True
    )
    assert [event.type for event in stream] == ["transcript.text.delta", "transcript.text.done"]
    call = settled(media, stream.response.headers)
    assert (call["evidence"], call["meters"]) == ("provider", {"input_audio": 90})


def test_a_form_with_sound_passes_byte_for_byte(media: System, customer: Customer) -> None:
    request = media.http(customer.key).build_request(
        "POST", "/v1/audio/transcriptions", data={"model": "whisper-1"}, files={"file": ("\u00e4.wav", sound(1))}
    )
    body, headers = request.read(), {"content-type": request.headers["content-type"]}
    before = len(media.far_end.calls())
    ours = media.http(customer.key).post("/v1/audio/transcriptions", content=body, headers=headers)
    theirs = direct(media, "POST", "/v1/audio/transcriptions", content=body, headers=headers)
    assert same_request(media, before)
    assert ours.content == theirs.content


@pytest.mark.parametrize("data", [b"OggS" + bytes(100), b"fLaC" + bytes(100), bytes(8) + b"ftypM4A ", b""])
def test_sound_whose_length_nothing_bounds_is_refused(media: System, customer: Customer, data: bytes) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        media.openai(customer.key).audio.transcriptions.create(model="whisper-1", file=("a.ogg", data))
    assert (refused.value.status_code, refused.value.code) == (402, "model_not_priced")
    assert "WAV" in str(refused.value)


def test_a_form_that_is_sent_again_with_its_key_is_charged_once(media: System, customer: Customer) -> None:
    client = media.openai(customer.key)
    replies = [
        client.audio.transcriptions.with_raw_response.create(
            model="whisper-1", file=("a.wav", sound()), extra_headers={"Idempotency-Key": "one"}
        )
        for _ in range(2)
    ]
    first, second = (reply.headers for reply in replies)
    assert first["x-call-id"] == second["x-call-id"]
    assert second["idempotent-replayed"] == "true"


def test_a_form_above_its_bound_is_refused(media: System, customer: Customer) -> None:
    reply = media.http(customer.key).post(
        "/v1/audio/transcriptions", data={"model": "whisper-1"}, files={"file": ("a.wav", bytes(33 * 2**20))}
    )
    assert reply.status_code == 413
