"""Which requests may be answered by what was answered to a like one.

No closeness of vectors tells a paraphrase from another question: to the model "is it safe" and "is it not safe" are alike to
0.991, eggs of a hard yolk and of a soft one to 0.958, trains from London to Paris and back to 0.998, and true paraphrases to
0.80 and more. So a near match asks for two things: `Question.exact` is equal byte for byte, and the vectors are close.

`exact` holds the whole request, and of the user's text **all words in their order** but for a short list of what may be said in
another way: a greeting, please and thanks; how a question begins ("How do I", "What is the best way to"); contractions; the
capital of an ordinary first word; white space and the last mark. Not even articles are on it ("What is time?", "What is the
time?"). Numbers, names, negations, opposites and whatever no list knows are thereby guarded, in any language. What cannot be
guarded at all is no Question: code, formulas, tables, texts about words, texts of several lines.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiplatform.gateway.cache import words

VERSION = 1  # of the rules below: an answer kept under others matches nothing
SHORTEST_CHARACTERS = 8
LONGEST_CHARACTERS = 600  # fits one window of the model, and a question; longer texts carry documents


@dataclass(frozen=True, slots=True)
class Question:
    """What must be equal byte for byte, and the text whose vector must be close."""

    exact: bytes
    text: str


def question(endpoint: str, request: dict[str, Any]) -> Question | None:
    """What a request to `chat`, `messages` or `responses` may match nearly by; None where it may not, which is always right.

    It must be a single user message of text, beside instructions that do not make the text their material. All of the request
    is in `exact` except for `stream` and `stream_options`: its fields in any order, what lies within them as it came.
    """
    parts = _PARTS.get(endpoint)
    if parts is None or not _stands_alone(request):
        return None
    split = parts(request)
    said = _said(split.text) if split else None
    if split is None or said is None or _works_on_text(split.instructions):
        return None
    fields = {name: value for name, value in request.items() if name not in {"stream", "stream_options"}}
    rest = [[name, split.frame if name == split.field else fields[name]] for name in sorted(fields)]
    return Question(json.dumps([VERSION, endpoint, rest, said]).encode(), " ".join(split.text.split()))


@dataclass(frozen=True, slots=True)
class _Split:
    """A request's text, the field it came from, that field with a gap in the text's place, and what instructs the model."""

    text: str
    field: str
    frame: Any
    instructions: list[Any]


_GAP = None
_INSTRUCTING = {"system", "developer"}
# What the answer rests on beyond the request itself.
_STATE = {"previous_response_id", "conversation", "container", "prompt", "audio"}


def _works_on_text(instructions: list[Any]) -> bool:
    return words.WORKS_ON_TEXT.search(json.dumps(instructions, ensure_ascii=False)) is not None


def _stands_alone(request: dict[str, Any]) -> bool:
    return (
        all(request.get(name) is None for name in _STATE)
        and request.get("modalities") in (None, ["text"])
        and not request.get("background")
    )


def _chat(request: dict[str, Any]) -> _Split | None:
    return _split(request.get("messages"), "messages", "text", [])


def _messages(request: dict[str, Any]) -> _Split | None:
    return _split(request.get("messages"), "messages", "text", [request.get("system")])


def _responses(request: dict[str, Any]) -> _Split | None:
    given, instructions = request.get("input"), [request.get("instructions")]
    if isinstance(given, str):
        return _Split(given, "input", _GAP, instructions)
    return _split(given, "input", "input_text", instructions)


_PARTS: dict[str, Callable[[dict[str, Any]], _Split | None]] = {
    "chat": _chat,
    "messages": _messages,
    "responses": _responses,
}


def _split(messages: Any, field: str, kind: str, instructions: list[Any]) -> _Split | None:
    """Takes the text out of the only user message; None if there is any message but that and instructions of text."""
    if not isinstance(messages, list) or not all(_is_message(one, kind) for one in messages):
        return None
    asked = [one for one in messages if one["role"] == "user"]
    if len(asked) != 1 or not all(one["role"] in _INSTRUCTING for one in messages if one is not asked[0]):
        return None
    content = asked[0]["content"]
    if isinstance(content, str):
        text, gap = content, _GAP
    elif len(content) == 1:
        text, gap = content[0]["text"], [{**content[0], "text": _GAP}]
    else:
        return None
    frame = [{**one, "content": gap} if one is asked[0] else one for one in messages]
    return _Split(text, field, frame, [*instructions, *(one for one in messages if one is not asked[0])])


def _is_message(message: Any, kind: str) -> bool:
    if not isinstance(message, dict) or message.get("type", "message") != "message" or "tool_calls" in message:
        return False
    content = message.get("content")
    if isinstance(content, str):
        return "role" in message
    return (
        "role" in message
        and isinstance(content, list)
        and all(
            isinstance(part, dict) and part.get("type") == kind and isinstance(part.get("text"), str)
            for part in content
        )
    )


# --- the user's text ---

_MARKS = r"\"\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a\u300c\u300d\u300e\u300f`\u201a\u2018\u2032\u2033\uff02"
_APOSTROPHE = re.compile(r"(?<=[^\W_])\u2019(?=[^\W_])")
_QUOTE = re.compile(rf"[{_MARKS}]|(?<![^\W_])['\u2019]|['\u2019](?![^\W_])")  # an apostrophe within a word is none
_FORMULA = re.compile(
    r"[{}\[\]<>=|\\^~;*_]|\w\(|\(\)|//|(?:^| )[-+/&%]+(?: |$)|[+/]{2}|--|[^\W\d]\d*[+/]\d|\d[+/]\d|:(?=\s|$)|#!|\$\w*[({]"
)
_ENDING = re.compile(r"(?<=[^\W\d_])[.!?]$|(?<=\d)[.?]$")


def _said(text: str) -> list[str] | None:
    """The language, and the words that must be equal in their order; None if the text cannot be guarded."""
    text = text.strip()
    if not SHORTEST_CHARACTERS <= len(text) <= LONGEST_CHARACTERS or not _is_guarded(text):
        return None
    text = _APOSTROPHE.sub("'", unicodedata.normalize("NFC", text))
    marks = [found.start() for found in _QUOTE.finditer(text)]
    if marks:
        # From the first mark to the last all is quoted, and what one mark alone begins goes to the end.
        end = marks[-1] + 1 if len(marks) > 1 else len(text)
        quoted, before, after = [text[marks[0] : end]], text[: marks[0]], text[end:]
    else:
        quoted, before, after = [], text, ""
    language = _language(before + " " + after)
    head = _rewritten(before.split(), language, is_all=not marks)
    return [language, *head, *quoted, *after.split()]


def _is_guarded(text: str) -> bool:
    if any(unicodedata.category(character)[0] == "C" or character in "\u2028\u2029" for character in text):
        return False  # lines, tabs, what cannot be seen, half characters
    if _FORMULA.search(text) or words.ABOUT_WORDS.search(text):
        return False
    letters = [character for character in text if character.isalpha()]
    latin = sum(unicodedata.name(character, "").startswith("LATIN ") for character in letters)
    return latin * 2 > len(letters)


def _language(text: str) -> str:
    """The one language whose common words are most of those that are common in any; empty if it is not clear."""
    said = [word.strip("¿?¡!.,") for word in text.lower().split()]
    counts = sorted((sum(word in one.common for word in said), name) for name, one in words.LANGUAGES.items())
    (second, _), (most, name) = counts[-2:]
    return name if most > second else ""


def _rewritten(said: list[str], language: str, *, is_all: bool) -> list[str]:
    """The words without what may be said in another way, where the language is known."""
    if not language:
        return said
    text = " ".join([_spelled_out(word) for word in said] if language == "en" else said)
    if is_all:
        text = words.POLITE_END.sub("", text)
    for pattern, replacement in words.LANGUAGES[language].rewrites:
        text = pattern.sub(replacement, text, count=1)
    found = _with_small_start((_without_end(text) if is_all else text).split())
    # "It is closed?" asks what "It is closed." tells; "Why is it closed" asks with and without its mark.
    is_plain_question = bool(found) and found[0] in words.ASKING
    return [*found, "?"] if is_all and text.endswith("?") and not is_plain_question else found


def _without_end(text: str) -> str:
    return _ENDING.sub("", text)


def _spelled_out(word: str) -> str:
    """A contraction in full; not one in capitals, which may be a name."""
    small = word.lower()
    if word not in {small, word.capitalize()}:
        return word
    if small.endswith("n't") and small not in words.CONTRACTIONS:
        return small.removesuffix("n't") + " not"
    return words.CONTRACTIONS.get(small, word)


def _with_small_start(said: list[str]) -> list[str]:
    """An ordinary first word in small letters, since people write either."""
    is_ordinary = bool(said) and said[0].lower() in words.OPENERS and said[0] == said[0].capitalize()
    return [said[0].lower(), *said[1:]] if is_ordinary else said
