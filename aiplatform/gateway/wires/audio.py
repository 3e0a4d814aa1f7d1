"""OpenAI's audio: speech, priced by the character or by tokens; transcriptions and translations, by the second or by tokens.

Sources, read in November 2026: developers.openai.com/api/reference (audio), …/docs/guides/speech-to-text, …/docs/pricing.
"""

import re
from typing import Any

from aiplatform.gateway.wires import forms
from aiplatform.gateway.wires.base import (
    BYTES_PER_TOKEN,
    Asked,
    BadRequest,
    Facts,
    NotPriced,
    end_user,
    read_object,
    text,
)
from aiplatform.gateway.wires.bounds import AUDIO_TOKENS_PER_SECOND, TEMPLATE_TOKENS
from aiplatform.gateway.wires.kept import forwarded
from aiplatform.gateway.wires.media import file_seconds
from aiplatform.providers.base import Usage
from usage.pricing import Bound

LONGEST_SPEECH = 4096
# Spoken by a person, 15 characters take a second; the bound is eight times as slow, and at least five seconds.
_USUAL_CHARACTERS_PER_SECOND, _SLOWEST_CHARACTERS_PER_SECOND, _LEAST_SECONDS = 15, 2, 5
_SPOKEN_TOKENS_PER_SECOND = 21  # 0.015 USD a minute at 12 USD a million tokens
# 2,000 output tokens are documented; a fast speaker says 4 words a second, and each may be several tokens.
_LEAST_WRITTEN_TOKENS, _WRITTEN_TOKENS_PER_SECOND = 2048, 25
_SPEED = (0.25, 4.0)


def read_speech(asked: Asked) -> Facts:
    """A JSON body with the text that is to be spoken."""
    request = read_object(asked.body)
    said = text(request, "input")
    if len(said) > LONGEST_SPEECH:
        raise BadRequest(f"`input` is longer than {LONGEST_SPEECH} characters.", param="input")
    text(request, "model")
    slow, usual = _spoken_seconds(len(said), _speed(request))
    size = len(asked.body)
    tokens = Bound(
        size + TEMPLATE_TOKENS,
        {"output_audio": slow * _SPOKEN_TOKENS_PER_SECOND},
        (),
        counted=Usage(-(-size // BYTES_PER_TOKEN), meters={"output_audio": usual * _SPOKEN_TOKENS_PER_SECOND}),
    )
    units = {"input_characters": len(said)}
    return _facts(
        asked,
        request["model"],
        Bound(0, units, (), counted=Usage(meters=units), instead=tokens),
        is_streamed=request.get("stream_format") == "sse",
    )


def read_transcription(asked: Asked) -> Facts:
    """A form with one file, whose length its header tells; translations are read alike."""
    form = forms.read(asked.headers.get("content-type", ""), asked.body)
    file = form.only("file")
    seconds, usual = file_seconds(file.data) or (0, 0)
    if not seconds:
        raise NotPriced(
            "The length of this audio cannot be bounded before it is decoded; send WAV (PCM) or MP3.", param="file"
        )
    size = len(asked.body) - len(file.data)
    tokens = Bound(
        size + TEMPLATE_TOKENS,
        {
            "input_audio": seconds * AUDIO_TOKENS_PER_SECOND,
            "output": max(seconds * _WRITTEN_TOKENS_PER_SECOND, _LEAST_WRITTEN_TOKENS),
        },
        (),
        counted=Usage(
            -(-size // BYTES_PER_TOKEN), meters={"input_audio": usual * AUDIO_TOKENS_PER_SECOND // 2}, output=usual * 4
        ),
    )
    _check(form)
    by_time = Bound(0, {"input_seconds": seconds}, (), counted=Usage(meters={"input_seconds": usual}), instead=tokens)
    facts = _facts(asked, form.required("model"), by_time, is_streamed=form.flag("stream"))
    facts.media_bytes = len(file.data)
    return facts


def _check(form: forms.Form) -> None:
    """What would be billed beyond the file."""
    if any(re.match(r"known_speaker_references", name) for name in form.fields):
        raise NotPriced("Reference audio cannot be bounded; leave it out.", param="known_speaker_references")


def _speed(request: dict[str, Any]) -> float:
    speed = request.get("speed")
    if speed is None:
        return 1.0
    least, most = _SPEED
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not least <= speed <= most:
        raise BadRequest(f"`speed` must be a number from {least} to {most}.", param="speed")
    return float(speed)


def _spoken_seconds(characters: int, speed: float) -> tuple[int, int]:
    """How long a text of so many characters lasts at most, and usually."""
    slow = int(characters / _SLOWEST_CHARACTERS_PER_SECOND / speed) + _LEAST_SECONDS
    return slow, int(characters / _USUAL_CHARACTERS_PER_SECOND / speed) + 1


def _facts(asked: Asked, model: str, bound: Bound, *, is_streamed: bool) -> Facts:
    return Facts(
        wire=asked.endpoint.wire,
        endpoint=asked.endpoint.name,
        model=model,
        body=asked.body,
        streamed=is_streamed,
        end_user=end_user(None, asked.headers),
        bound=bound,
        max_tokens=0,
        max_tokens_field="",
        forward=forwarded(asked),
    )
