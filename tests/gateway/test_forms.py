"""Forms are read as one reader only could read them; everything else is refused before it is sent."""

from typing import Any

import httpx2
import pytest

from aiplatform.gateway.wires import BadRequest, forms

KIND = "multipart/form-data; boundary=b"


def part(name: str, data: bytes, filename: str = "", more: bytes = b"") -> bytes:
    """One part as SDKs write it."""
    file = f'; filename="{filename}"' if filename else ""
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n'.encode()
    return head + more + b"\r\n" + data + b"\r\n"


def test_a_form_of_the_sdks_client_is_read_whole() -> None:
    files: Any = [("image[]", ("\u00e4.png", b"\r\n\x00\xff--", "image/png")), ("image[]", ("b.png", b"", "image/png"))]
    request = httpx2.Request("POST", "http://x.test/", data={"model": "m", "t[]": ["a", "b"]}, files=files)
    form = forms.read(request.headers["content-type"], request.read())
    assert form.fields == {"model": ["m"], "t[]": ["a", "b"]}
    assert [(one.name, one.data) for one in form.files] == [("image[]", b"\r\n\x00\xff--"), ("image[]", b"")]


@pytest.mark.parametrize(
    "body",
    [
        part("model", b"a") + part("model", b"b") + b"--b--\r\n",
        part("model", b"a") + part("model[]", b"b") + b"--b--\r\n",
        b"preamble\r\n" + part("model", b"a") + b"--b--\r\n",
        part("model", b"a") + b"--b--\r\nepilogue",
        part("model", b"a"),
        part("model", b'a\n--b\nContent-Disposition: form-data; name="file"\n\nother') + b"--b--\r\n",
        part("model", b"YQ==", more=b"Content-Transfer-Encoding: base64\r\n") + b"--b--\r\n",
        part("model", b"a", more=b"Content-Disposition: form-data; name=other\r\n") + b"--b--\r\n",
        part("model", b"\xff") + b"--b--\r\n",
        b"--b\r\n\r\nx\r\n--b--\r\n",
        b"",
    ],
)
def test_what_two_readers_could_read_differently_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        forms.read(KIND, body)


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "multipart/mixed; boundary=b"])
def test_only_a_form_with_a_boundary_is_one(kind: str) -> None:
    with pytest.raises(BadRequest):
        forms.read(kind, part("model", b"a") + b"--b--\r\n")


@pytest.mark.parametrize("extra", [part("file", b"other", "b"), part("file[]", b"other", "b"), part("file", b"other")])
def test_a_second_file_of_the_same_name_is_refused(extra: bytes) -> None:
    form = forms.read(KIND, part("file", b"one", "a") + extra + b"--b--\r\n")
    with pytest.raises(BadRequest):
        form.only("file")
    assert forms.read(KIND, part("file", b"one", "a") + b"--b--\r\n").only("file").data == b"one"
