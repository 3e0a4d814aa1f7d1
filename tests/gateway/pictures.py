"""Images and sounds of a given size, in so few bytes as their formats allow: headers are all that is ever read."""

import base64
import struct
import zlib
from collections.abc import Callable

FORMATS = ("png", "jpeg", "jpeg_with_profile", "gif", "gif_grown", "webp_lossy", "webp_lossless", "webp_extended")

_WEBP: dict[str, Callable[[int, int], tuple[bytes, bytes]]] = {
    "webp_lossy": lambda w, h: (b"VP8 ", bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", w, h)),
    "webp_lossless": lambda w, h: (b"VP8L", b"\x2f" + struct.pack("<I", (w - 1) | (h - 1) << 14)),
    "webp_extended": lambda w, h: (b"VP8X", bytes(4) + (w - 1).to_bytes(3, "little") + (h - 1).to_bytes(3, "little")),
}


def picture(form: str, width: int, height: int) -> bytes:
    """An image of `form`; WebP and GIF have sides of at most 16,383 and 65,535."""
    start = form.partition("_")[0]
    if start == "png":
        return _png(width, height)
    if start == "jpeg":
        return _jpeg(width, height, b"\xff\xe2" + struct.pack(">H", 60_002) + bytes(60_000) if form != start else b"")
    if start == "gif":
        return _gif(width, height, (width, height) if form == start else (1, 1))
    return _webp(*_WEBP[form](width, height))


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def wav(seconds: float, rate: int = 8000, channels: int = 1, bits: int = 8) -> bytes:
    frame = channels * bits // 8
    sound = bytes(int(seconds * rate) * frame)
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * frame, frame, bits)
    body = b"WAVE" + b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(sound)) + sound
    return b"RIFF" + struct.pack("<I", len(body)) + body


def mp3(seconds: float, kbit: int = 8) -> bytes:
    """The header of an MPEG-2 layer III frame of 8 kbit/s, and as many bytes as `seconds` take at `kbit`."""
    return b"\xff\xf3\x14\xc4" + bytes(int(seconds * kbit * 125) - 4)


def _png(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def _jpeg(width: int, height: int, profile: bytes) -> bytes:
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00"
    return b"\xff\xd8\xff\xe0" + struct.pack(">H", 16) + bytes(14) + profile + frame


def _gif(width: int, height: int, screen: tuple[int, int]) -> bytes:
    comment = b"\x21\xfe\x05hello\x00"
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0)
    return b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6) + comment + frame


def _webp(kind: bytes, data: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 12 + len(data)) + b"WEBP" + kind + struct.pack("<I", len(data)) + data
