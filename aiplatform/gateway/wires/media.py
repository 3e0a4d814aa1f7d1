"""Sizes of images and lengths of audio, read from their headers alone: nothing hostile is ever decoded.

None always means that the size is not known, never that it is small. Whatever two decoders could read differently is not known.
"""

import binascii
import struct

MOST_SEGMENTS = 1000
_HEAD_CHARACTERS = 4096
_MARKER = 0xFF
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_GIF_FRAME, _GIF_EXTENSION = 0x2C, 0x21
_PCM, _EXTENSIBLE = (1, 3), 0xFFFE
_SLOWEST_HZ, _FASTEST_HZ, _MOST_CHANNELS, _BITS = 8_000, 384_000, 8, (8, 16, 24, 32, 64)
_ID3_HEADER = 10
# MPEG audio knows no bit rate below 8 kbit/s but for free format, which is refused: ISO/IEC 13818-3, table of bit rates.
_MP3_BYTES_PER_SECOND = 1000
_MPEG_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def image_size(encoded: str) -> tuple[int, int] | None:
    """Width and height of a base64 PNG, JPEG, GIF or WebP."""
    head = _head(encoded)
    size = _image_size(head)
    if size is None and len(encoded) > _HEAD_CHARACTERS and head[:3] in (b"\xff\xd8\xff", b"GIF"):
        whole = _decoded(encoded, whole=True)  # a JPEG's size stands behind its colour profile and thumbnail
        size = _image_size(whole) if whole is not None else None
    return size if size and min(size) > 0 else None


def audio_seconds(encoded: str, form: str) -> int | None:
    """How many seconds a base64 WAV (PCM) or MP3 lasts at most, rounded up."""
    size = -(-len(encoded) // 4) * 3
    per_second = {"wav": _wav_rate, "mp3": _mp3_rate}.get(form, _no_rate)(encoded)
    return -(-size // per_second) if per_second else None


def file_seconds(data: bytes) -> tuple[int, int] | None:
    """How many seconds a WAV (PCM) or MP3 file lasts at most, and as its first frame says; both rounded up."""
    if rate := _wav_bytes_per_second(data[:_HEAD_CHARACTERS]):
        return -(-len(data) // rate), -(-len(data) // rate)
    at = _id3_size(data) if data[:3] == b"ID3" else 0
    if not _is_mp3_frame(data[at : at + 3]):
        return None
    return -(-len(data) // _MP3_BYTES_PER_SECOND), -(-len(data) // _mp3_bytes_per_second(data[at : at + 3]))


def _decoded(encoded: str, *, whole: bool) -> bytes | None:
    """Strictly: what one decoder skips, another may not."""
    try:
        return binascii.a2b_base64(encoded if whole else encoded[: len(encoded) // 4 * 4], strict_mode=True)
    except ValueError:
        return None


def _head(encoded: str) -> bytes:
    return _decoded(encoded[:_HEAD_CHARACTERS], whole=len(encoded) <= _HEAD_CHARACTERS) or b""


def _image_size(data: bytes) -> tuple[int, int] | None:
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
            width, height = struct.unpack_from(">II", data, 16)
            return width, height
        if data[:3] == b"\xff\xd8\xff":
            return _jpeg_size(data)
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return _gif_size(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data)
    except (struct.error, IndexError):
        pass
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Of the first frame header; a second one is an error to every decoder."""
    at = 2
    for _ in range(MOST_SEGMENTS):
        marker, at = data[at + 1], at + 2
        if data[at - 2] != _MARKER or marker in (0xD9, 0xDA, _MARKER):
            return None
        if marker in _SOF:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        at += struct.unpack_from(">H", data, at)[0]
    return None


def _gif_size(data: bytes) -> tuple[int, int] | None:
    """Of the screen or of the first frame, whichever is larger: decoders let a frame grow the screen."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    is_extension = False
    for _ in range(MOST_SEGMENTS):
        if is_extension:
            is_extension, at = data[at] > 0, at + 1 + data[at]
        elif data[at] == _GIF_FRAME:
            left, top, wide, high = struct.unpack_from("<HHHH", data, at + 1)
            return max(width, left + wide), max(height, top + high)
        elif data[at] == _GIF_EXTENSION:
            is_extension, at = True, at + 2
        else:
            return None
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and data[20:21] == b"\x2f":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _no_rate(_encoded: str) -> None:
    return None


def _wav_rate(encoded: str) -> int | None:
    return _wav_bytes_per_second(_head(encoded))


def _wav_bytes_per_second(data: bytes) -> int | None:
    """By the format's own figures; only where they agree with each other."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE" or data.count(b"fmt ") != 1:
        return None
    at = data.index(b"fmt ")
    if data.find(b"data", 12, at) >= 0 or len(data) < at + 34:
        return None
    form, channels, rate, per_second, frame, bits = struct.unpack_from("<HHIIHH", data, at + 8)
    if form == _EXTENSIBLE:
        form = struct.unpack_from("<H", data, at + 32)[0]
    sane = form in _PCM and _SLOWEST_HZ <= rate <= _FASTEST_HZ and channels <= _MOST_CHANNELS and bits in _BITS
    agree = frame == channels * bits // 8 and per_second == rate * frame
    return per_second if sane and agree and per_second else None


def _mp3_rate(encoded: str) -> int | None:
    """The lowest bit rate that there is, once the first frame shows that it is one."""
    data, at = _head(encoded), 0
    if data[:3] == b"ID3" and len(data) > _ID3_HEADER:
        at = _id3_size(data)
        start = at // 3 * 4
        data, at = _decoded(encoded[start : start + 8], whole=True) or b"", at % 3
    return _MP3_BYTES_PER_SECOND if _is_mp3_frame(data[at : at + 3]) else None


def _id3_size(data: bytes) -> int:
    return _ID3_HEADER + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=False))


def _is_mp3_frame(data: bytes) -> bool:
    if len(data) < 3:  # noqa: PLR2004 - the bytes that are looked at
        return False
    is_frame = data[0] == _MARKER and data[1] & 0xE0 == 0xE0  # noqa: PLR2004 - eleven bits set
    is_mpeg_audio = data[1] & 0x18 != 0x08 and data[1] & 0x06 != 0  # noqa: PLR2004 - a reserved version
    return is_frame and is_mpeg_audio and data[2] >> 4 not in {0, 15}


def _mp3_bytes_per_second(frame: bytes) -> int:
    """Of a frame's own bit rate, by the table of ISO/IEC 11172-3 for layer III and 13818-3; the lowest for other layers."""
    if frame[1] & 0x06 != 0x02:  # noqa: PLR2004 - layer III
        return _MP3_BYTES_PER_SECOND
    kilobits = (_MPEG_1 if frame[1] & 0x18 == 0x18 else _MPEG_2)[frame[2] >> 4]  # noqa: PLR2004 - its version
    return kilobits * 125
