"""A tenant's own list of terms, matched as whole words, whatever their case or the compatibility form (NFKC) of a character."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any


class Terms:
    """A list of terms, compiled once. They are taken literally, so that matching takes linear time whatever they hold."""

    def __init__(self, terms: Iterable[str]) -> None:
        self._by_form = {form: term for term in terms if (form := _folded(term))}
        longest_first = sorted(self._by_form, key=len, reverse=True)
        self._any = (
            re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)") if longest_first else None
        )

    def first_in(self, text: str) -> str | None:
        """The first term that `text` holds, as its owner wrote it."""
        found = self._any.search(_folded(text)) if self._any else None
        return self._by_form[found[0]] if found else None


def texts(value: Any) -> Iterator[str]:
    """All strings of a JSON value, at any depth; names of fields are not said by anybody."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
