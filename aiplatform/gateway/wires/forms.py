"""multipart/form-data, read as strictly as JSON is: what two readers could read differently is refused (RFC 7578)."""

import re
from typing import NamedTuple

from aiplatform.gateway.wires.base import BadRequest

MOST_PARTS = 128
_BOUNDARY = re.compile(r'multipart/form-data\s*;\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))\s*', re.IGNORECASE)
_DISPOSITION = re.compile(
    rb'content-disposition:[ \t]*form-data;[ \t]*name="([^"\r\n]*)"(?:;[ \t]*filename="([^"\r\n]*)")?',
    re.IGNORECASE,
)
_TYPE = re.compile(rb"content-(type|length):[^\r\n]*", re.IGNORECASE)


class File(NamedTuple):
    """A part with a file name."""

    name: str
    filename: str
    data: bytes


class Form(NamedTuple):
    """Fields by name, in order; a name in `[]` may come several times, every other one once."""

    fields: dict[str, list[str]]
    files: list[File]

    def text(self, name: str) -> str | None:
        """A field's value; None where it is absent."""
        found = self.fields.get(name)
        return found[0] if found else None

    def required(self, name: str) -> str:
        """Raises BadRequest where it is absent or blank."""
        found = self.text(name)
        if found is None or not found.strip():
            raise BadRequest(f"`{name}` must be a non-empty string.", param=name)
        return found

    def flag(self, name: str) -> bool:
        """A boolean, false where absent; raises BadRequest."""
        found = (self.text(name) or "false").lower()
        if found not in {"true", "false"}:
            raise BadRequest(f"`{name}` must be true or false.", param=name)
        return found == "true"

    def whole(self, name: str, most: int) -> int | None:
        """A whole number from 0 to `most`; None where absent. Raises BadRequest."""
        found = self.text(name)
        if found is None:
            return None
        if not (found.isascii() and found.isdigit() and len(found) <= 10 and int(found) <= most):  # noqa: PLR2004
            raise BadRequest(f"`{name}` must be a whole number of at most {most}.", param=name)
        return int(found)

    def only(self, name: str) -> File:
        """The one file of this name, which no other part may have; raises BadRequest."""
        found = self.named(name)
        if len(found) != 1 or name in self.fields or f"{name}[]" in self.fields:
            raise BadRequest(f"`{name}` must be one file.", param=name)
        return found[0]

    def named(self, *names: str) -> list[File]:
        """The files of these names, `[]` or not."""
        return [file for file in self.files if file.name.removesuffix("[]") in names]


def read(content_type: str, body: bytes) -> Form:
    """Raises BadRequest for anything but one plain form."""
    found = _BOUNDARY.fullmatch(content_type.strip())
    if not found:
        raise BadRequest("The body must be multipart/form-data with a boundary.")
    mark = b"--" + (found[1] or found[2]).encode()
    pieces = (b"\r\n" + body).split(b"\r\n" + mark)
    is_whole = not pieces[0] and len(pieces) > 1 and pieces[-1] in (b"--", b"--\r\n")
    if (
        not is_whole or body.count(mark) != len(pieces) - 1
    ):  # a lenient reader takes a boundary after a bare line feed, too
        raise BadRequest("The form does not begin and end with its boundary.")
    if len(pieces) > MOST_PARTS + 2:
        raise BadRequest(f"The form has more than {MOST_PARTS} parts.")
    form = Form({}, [])
    for piece in pieces[1:-1]:
        _add(form, piece)
    return form


def _twin(name: str) -> str:
    """The name by which other readers take the same field."""
    return name[:-2] if name.endswith("[]") else f"{name}[]"


def _add(form: Form, piece: bytes) -> None:
    head, blank, data = piece.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    said = [_DISPOSITION.fullmatch(line) for line in lines[1:]]
    ours = [one for one in said if one]
    odd = [line for line, one in zip(lines[1:], said, strict=True) if not one and not _TYPE.fullmatch(line)]
    if lines[0] or not blank or len(ours) != 1 or odd:
        raise BadRequest("A part of the form has headers that cannot be read.")
    try:
        name, filename = (None if one is None else one.decode() for one in ours[0].groups())
        text = data.decode() if filename is None else ""
    except UnicodeDecodeError as error:
        raise BadRequest("A field of the form is not UTF-8.") from error
    assert name is not None  # noqa: S101 - the expression has it
    if filename is not None:
        form.files.append(File(name, filename, data))
    elif (name in form.fields and not name.endswith("[]")) or _twin(name) in form.fields:
        raise BadRequest(f"The field `{name[:60]}` comes twice.", param=name[:60])
    else:
        form.fields.setdefault(name, []).append(text)
