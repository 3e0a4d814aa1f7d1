"""Sizes are read from headers, and what could be read in two ways is not known."""

import base64
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiplatform.gateway.wires import media
from tests.gateway.pictures import FORMATS, encoded, mp3, picture, wav


@given(st.sampled_from(FORMATS), st.integers(1, 16_383), st.integers(1, 16_383))
def test_the_size_of_an_image_is_read_from_its_header(form: str, width: int, height: int) -> None:
    assert media.image_size(encoded(picture(form, width, height))) == (width, height)


@pytest.mark.parametrize("form", FORMATS)
def test_no_cut_or_damaged_image_makes_reading_crash(form: str) -> None:
    whole, chance = picture(form, 640, 480), random.Random(7)
    for end in range(0, len(whole), max(len(whole) // 200, 1)):
        media.image_size(encoded(whole[:end]))
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[chance.randrange(min(len(whole), 60))] = chance.randrange(256)
        media.image_size(encoded(bytes(damaged)))


@given(
    st.binary(max_size=80), st.sampled_from([b"", b"\xff\xd8\xff", b"GIF89a", b"RIFF0000WEBP", b"\x89PNG\r\n\x1a\n"])
)
def test_no_bytes_make_reading_an_image_crash(data: bytes, start: bytes) -> None:
    size = media.image_size(encoded(start + data))
    assert size is None or min(size) > 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "aGVsbG8=",
        "not base64 ü",
        " " + encoded(picture("png", 9, 9)),
        "\n".join(encoded(picture("gif", 9, 9))),
    ],
)
def test_what_a_decoder_may_read_otherwise_has_no_known_size(text: str) -> None:
    assert media.image_size(text) is None


def test_an_image_without_height_or_width_has_no_known_size() -> None:
    assert media.image_size(encoded(picture("jpeg", 640, 0))) is None
    assert media.image_size(encoded(picture("png", 0, 480))) is None


@pytest.mark.parametrize(
    "data",
    [b"\xff\xd8" + b"\xff" * 6_000_000, b"\xff\xd8" + b"\xff\xe0\x00\x02" * 1_500_000, b"GIF89a" + bytes(7) + b"\x21\xfe" + b"\x01a" * 3_000_000],
)  # fmt: skip
def test_a_hostile_image_costs_no_time(data: bytes) -> None:
    text = encoded(data)
    began = time.perf_counter()
    assert media.image_size(text) is None
    assert time.perf_counter() - began < 0.5


@given(st.floats(0.1, 9), st.sampled_from([8000, 16_000, 24_000, 48_000]), st.integers(1, 2), st.sampled_from([8, 16]))
def test_a_wav_lasts_as_long_as_its_header_says(seconds: float, rate: int, channels: int, bits: int) -> None:
    found = media.audio_seconds(encoded(wav(seconds, rate, channels, bits)), "wav")
    assert found is not None
    assert seconds - 1 / rate <= found <= seconds + 1.1


@given(st.floats(0.1, 60), st.sampled_from([8, 32, 128, 320]))
def test_an_mp3_never_lasts_longer_than_its_bound(seconds: float, kbit: int) -> None:
    found = media.audio_seconds(encoded(mp3(seconds, kbit)), "mp3")
    assert found is not None
    assert found >= seconds - 0.01


def test_an_mp3_with_a_tag_is_read_behind_it() -> None:
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 40, 5]) + bytes(40 * 128 + 5)
    assert media.audio_seconds(encoded(tag + mp3(3)), "mp3") == 9
    assert media.audio_seconds(encoded(tag + b"fLaC" + bytes(4000)), "mp3") is None


@pytest.mark.parametrize("form", ["mp3", "wav", "flac", ""])
@pytest.mark.parametrize(
    "data",
    [b"", b"fLaC" + bytes(40), b"OggS" + bytes(40), b"\xff\xf3\x04\xc4" + bytes(40), b"\xff\xf3\xf4\xc4" + bytes(40), b"ID3" + bytes(3),
     wav(1).replace(b"\x40\x1f\x00\x00", b"\x01\x00\x00\x00"), wav(1).replace(b"fmt \x10\x00\x00\x00\x01", b"fmt \x10\x00\x00\x00\x11"),
     wav(1).replace(b"data", b"fmt ")],
)  # fmt: skip
def test_audio_whose_length_can_be_doubted_has_none(data: bytes, form: str) -> None:
    assert media.audio_seconds(base64.b64encode(data).decode(), form) is None
