"""Images by the official SDK: by tokens or by the piece, plain, streamed, and from a form."""

from typing import Any

import openai
import pytest

from tests.gateway.records import direct, same_request, settled
from tests.system import Customer, System

PICTURE = ("a.png", b"\x89PNG\r\n\x1a\n\x00\xff\r\n--x not a boundary", "image/png")


def test_an_image_is_charged_by_the_tokens_that_its_provider_tells(media: System, customer: Customer) -> None:
    raw = media.openai(customer.key).images.with_raw_response.generate(
        model="gpt-image-1", prompt="a cat on a mat", quality="medium", size="1024x1024", n=2
    )
    usage = raw.parse().usage
    assert usage
    call = settled(media, raw.headers)
    assert call["meters"] == {"output_image": 2112}
    assert call["charged_nano"] == usage.input_tokens * 5000 + 2112 * 40_000


def test_a_picture_that_goes_in_has_its_own_price(media: System, customer: Customer) -> None:
    raw = media.openai(customer.key).images.with_raw_response.edit(
        model="gpt-image-1", prompt="bluer", image=[PICTURE, PICTURE], quality="low", size="1024x1024"
    )
    assert raw.parse().data
    call = settled(media, raw.headers)
    assert call["meters"] == {"input_image": 600, "output_image": 272}
    assert call["charged_nano"] == 2 * 5000 + 600 * 10_000 + 272 * 40_000


def test_a_form_passes_byte_for_byte_with_its_boundary(media: System, customer: Customer) -> None:
    fields = {"model": "gpt-image-1", "prompt": "caf\u00e9", "x_new": "1", "quality": "low"}
    request = media.http(customer.key).build_request(
        "POST", "/v1/images/edits", data=fields, files=[("image", PICTURE), ("mask", PICTURE)]
    )
    body, kind = request.read(), request.headers["content-type"]
    before = len(media.far_end.calls())
    ours = media.http(customer.key).post("/v1/images/edits", content=body, headers={"content-type": kind})
    theirs = direct(media, "POST", "/v1/images/edits", content=body, headers={"content-type": kind})
    assert same_request(media, before)
    assert media.far_end.calls()[before]["content_type"] == kind
    assert (ours.status_code, ours.content) == (200, theirs.content)


def test_partial_images_are_relayed_and_the_last_event_is_charged(media: System, customer: Customer) -> None:
    with media.openai(customer.key).images.with_streaming_response.generate(
        model="gpt-image-1", prompt="a cat", stream=True, partial_images=2, quality="low", size="1024x1024"
    ) as raw:
        text = "".join(raw.iter_text())
    assert text.count("event: image_generation.partial_image") == 2
    assert text.count("event: image_generation.completed") == 1
    call = settled(media, raw.headers)
    assert (call["evidence"], call["meters"]) == ("provider", {"output_image": 272})


@pytest.mark.parametrize(
    ("more", "meter", "each"),
    [
        ({}, "image_1024", 40_000_000),
        ({"size": "1792x1024"}, "image_wide", 80_000_000),
        ({"quality": "hd", "size": "1024x1792"}, "image_hd_wide", 120_000_000),
    ],
)
def test_an_image_that_is_priced_by_the_piece_costs_what_size_and_quality_say(
    media: System, customer: Customer, more: dict[str, Any], meter: str, each: int
) -> None:
    reply = media.http(customer.key).post(
        "/v1/images/generations", json={"model": "dall-e-3", "prompt": "a cat", "n": 2, **more}
    )
    call = settled(media, reply.headers)
    assert (call["evidence"], call["meters"]) == ("counted", {meter: 2})
    assert call["charged_nano"] == call["held_nano"] == 2 * each


@pytest.mark.parametrize("more", [{"quality": "ultra"}, {"size": "enormous"}])
def test_what_nothing_bounds_is_refused_with_the_reason(media: System, customer: Customer, more: Any) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        media.openai(customer.key).images.generate(model="gpt-image-1", prompt="x", **more)
    assert (refused.value.status_code, refused.value.code) == (402, "model_not_priced")
    assert refused.value.param == next(iter(more))


def test_a_form_that_two_readers_could_read_differently_is_refused(media: System, customer: Customer) -> None:
    part = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n%b\r\n'
    image = b'--b\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\nx\r\n'
    prompt = b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\nx\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    with media.http(customer.key) as http:
        for body in (
            part % b"gpt-image-1" + part % b"dall-e-3" + image + prompt + b"--b--\r\n",
            b"before\r\n" + part % b"gpt-image-1" + image + prompt + b"--b--\r\n",
            part % b"gpt-image-1" + image + prompt,
            part % b"gpt-image-1" + image + prompt + b"--b--\r\nafter",
        ):
            reply = http.post("/v1/images/edits", content=body, headers=headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_request")
