"""Cuts text into the word pieces of BERT's uncased vocabulary, as a list of ids.

Source: Devlin et al., "BERT" (2018), and the tokenizer it came with: cleaned, spaced out around Chinese characters, accents
stripped, lower-cased, cut at white space and around punctuation, then the longest piece first. One thing differs from other
implementations on purpose: `[SEP]` and its like in a text are text, so that no text can end itself.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

START, END, UNKNOWN, PADDING = 101, 102, 100, 0
LONGEST_WORD = 100
_FILE = Path(__file__).parent / "vocabulary" / "bert-base-uncased.txt"
_CHINESE = re.compile(
    "[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b820-\U0002ceaf"
    "\uf900-\ufaff\U0002f800-\U0002fa1f]"
)


def pieces(text: str, most: int) -> list[int]:
    """At most `most` ids of a text, without the marks of its start and end; any text has some or none, and none fails."""
    ids: list[int] = []
    for word in _words(text):
        ids += _cut(word)
        if len(ids) >= most:
            return ids[:most]
    return ids


@functools.cache
def vocabulary() -> dict[str, int]:
    """The id of each piece."""
    lines = _FILE.read_text(encoding="utf-8").split("\n")
    return {piece: number for number, piece in enumerate(lines[:-1])}


def _words(text: str) -> Iterator[str]:
    if not text.isascii():
        text = _CHINESE.sub(r" \g<0> ", text)
        text = unicodedata.normalize("NFD", text)
    word = ""
    for character in text:
        kind = _kind(character)
        if kind == "letter":
            word += character.lower()  # one by one: a sigma at a word's end is the same sigma
        elif kind != "nothing":
            if word:
                yield word
            word = ""
            if kind == "mark":
                yield character
    if word:
        yield word


@functools.lru_cache(maxsize=4096)
def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if character in "\t\n\r" or category == "Zs":
        return "space"
    if character == "\ufffd" or category in {"Cc", "Cf", "Co", "Cs", "Mn"}:
        return "nothing"
    if category in {"Zl", "Zp"}:
        return "space"
    is_ascii_mark = character.isascii() and not character.isalnum()
    return "mark" if is_ascii_mark or category[0] == "P" else "letter"


@functools.lru_cache(maxsize=16_384)
def _cut(word: str) -> tuple[int, ...]:
    if len(word) > LONGEST_WORD:
        return (UNKNOWN,)
    known, found, start = vocabulary(), [], 0
    while start < len(word):
        prefix = "##" if start else ""
        for end in range(len(word), start, -1):
            number = known.get(prefix + word[start:end])
            if number is not None:
                break
        else:
            return (UNKNOWN,)
        found.append(number)
        start = end
    return tuple(found)
