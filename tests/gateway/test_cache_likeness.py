"""What may match nearly says the same; whatever turns a meaning round, in the text or around it, must be equal."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiplatform.gateway.cache import agreement as answers
from aiplatform.gateway.cache import likeness, words
from aiplatform.gateway.cache.agreement import agreement
from aiplatform.gateway.cache.likeness import question
from aiplatform.lib import embedding

APART = [
    # numbers, units, dates, money, versions
    ("Convert 10 USD to EUR", "Convert 100 USD to EUR"),
    ("Convert 10 USD to EUR", "Convert 10 CAD to EUR"),
    ("How long do I boil three eggs?", "How long do I boil four eggs?"),
    ("How long do I boil 3 eggs?", "How long do I boil 3.5 eggs?"),
    ("How many calories are in 100 g of rice?", "How many calories are in 100 kg of rice?"),
    ("How many calories are in 100 grams of rice?", "How many calories are in 100 ounces of rice?"),
    ("Who won the cup in 1998?", "Who won the cup in 1999?"),
    ("What happened on 3 May 1945?", "What happened on 4 May 1945?"),
    ("What happened in May?", "What happened in June?"),
    ("Is the office open on Monday?", "Is the office open on Sunday?"),
    ("What is 5% of my income?", "What is 50% of my income?"),
    ("What is 5% of my income?", "What is 5 of my income?"),
    ("How cold is it at -5 degrees?", "How cold is it at 5 degrees?"),
    ("What is the first law of motion?", "What is the second law of motion?"),
    ("What is new in Python 3.11?", "What is new in Python 3.12?"),
    ("How much is $5 in yen?", "How much is \u20ac5 in yen?"),
    ("How do I save a million dollars?", "How do I save a billion dollars?"),
    ("What is 5!", "What is 5"),
    ("What is the time?", "What is time?"),
    ("What is the matter?", "What is matter?"),
    ("How do I get a life?", "How do I get life?"),
    ("what is the rock worth", "what is rock worth"),
    ("Who is hurt?", "Who hurt?"),
    ("Do Americans use color?", "Do Americans use colour?"),
    ("Hello, Dolly who sang it?", "Dolly who sang it?"),
    ("How high is it and who built it?", "How wide is it and who built it?"),
    ("Are a few people allergic to milk?", "Are few people allergic to milk?"),
    # negations
    ("Is it safe to take aspirin?", "Is it not safe to take aspirin?"),
    ("Is it safe to take aspirin?", "Is it unsafe to take aspirin?"),
    ("Why do cats like water?", "Why don't cats like water?"),
    ("Can I drive with a licence?", "Can I drive without a licence?"),
    ("Why can you eat raw fish?", "Why can't you eat raw fish?"),
    ("Which countries have a king?", "Which countries have no king?"),
    ("Who has ever been to Mars?", "Who has never been to Mars?"),
    ("Is a resident taxed on this?", "Is a non-resident taxed on this?"),
    ("Darf ich hier parken?", "Darf ich hier nicht parken?"),
    ("Ist das ein Problem f\u00fcr mich?", "Ist das kein Problem f\u00fcr mich?"),
    ("Est-ce que je peux manger ce fruit ?", "Est-ce que je ne peux pas manger ce fruit ?"),
    ("\u00bfPuedo viajar con pasaporte?", "\u00bfPuedo viajar sin pasaporte?"),
    # opposites and comparisons
    ("How do I increase the volume?", "How do I decrease the volume?"),
    ("Should I eat before a run?", "Should I eat after a run?"),
    ("How do I enable the alarm?", "How do I disable the alarm?"),
    ("Is tea better than coffee?", "Is coffee better than tea?"),
    ("What is the minimum wage in Spain?", "What is the maximum wage in Spain?"),
    ("Does the price include tax?", "Does the price exclude tax?"),
    ("How long do I boil eggs for a hard yolk?", "How long do I boil eggs for a soft yolk?"),
    ("Is it fine to feed my cat raw chicken?", "Is it fine to feed my cat cooked chicken?"),
    ("Who is the president now?", "Who was the president now?"),
    ("Can I take this on a flight?", "Must I take this on a flight?"),
    ("What do I do if my child has a fever?", "What do I do if my child had a fever?"),
    # names and things, however they are written
    ("What is the capital of France?", "What is the capital of Spain?"),
    ("what is the population of austria", "what is the population of australia"),
    ("how do i travel by train from london to paris", "how do i travel by train from paris to london"),
    ("does a dog bite a man", "does a man bite a dog"),
    ("How much does an Apple cost?", "How much does an apple cost?"),
    ("Is IT's budget large?", "Is it's budget large?"),
    ("Does the US tax me?", "Does the us tax me?"),
    ("Who is a member of the Who?", "Who is a member of Who?"),
    ("symptoms of hypothyroidism in women", "symptoms of hyperthyroidism in women"),
    ("What are the benefits of vitamin a creams?", "What are the benefits of vitamin creams?"),
    ("How do I mail ann@example.org?", "How do I mail bob@example.org?"),
    ("What is the hashtag #sale about?", "What is the hashtag sale about?"),
    ("Why is commit deadbeef slow?", "Why is commit deadbeee slow?"),
    ("What does the linker do?", "What is the linker?"),
    ("What is my limit?", "What is your limit?"),
    ("How do I differ from apes?", "How do we differ from apes?"),
    ("Who can sue me?", "Who can I sue?"),
    # quoted
    ('How do I open "report.pdf"?', 'How do I open "ledger.pdf"?'),
    ("Who sang \u201cHello\u201d first?", "Who sang \u201cGoodbye\u201d first?"),
    ("Who sang 'The End' first?", "Who sang 'End' first?"),
    ("How does `sort -n` differ?", "How does `sort -r` differ?"),
    ("What is \u00abLa Vie\u00bb about?", "What is \u00abMa Vie\u00bb about?"),
    ('Who sings in "the door"?', "Who sings in the door?"),
    # languages, statements
    ("Where can I buy pain killers?", "Where can I buy pain tueurs?"),
    ("Wie kann ich mein Konto l\u00f6schen?", "How can I mein Konto l\u00f6schen?"),
    ("Is my account closed", "My account is closed"),
    ("My account is closed.", "My account is closed?"),
    ("Are you sure, Alice?", "Are you sure Alice?"),
    ("I like \U0001f34e pie, why", "I like \U0001f350 pie, why"),
]  # fmt: skip
# True paraphrases of the kinds that the rules allow: these match ...
ALIKE = [
    ("How do I reset my password?", "How can I reset my password?"),
    ("How do I reset my password?", "Hi, could you please tell me how to reset my password? Thanks!"),
    ("How do I reset my password?", "What is the best way to reset my password?"),
    ("What is the capital of France?", "what's the capital of France"),
    ("What is the capital of France?", "Tell me the capital of France."),
    ("What is the capital of France?", "Please tell me what is the capital of France?"),
    ("How do I cancel my subscription?", "What steps do I take to cancel my subscription?"),
    ("Where can I find my invoice?", "Hello, where can I find my invoice, please?"),
    ("Why isn't my card accepted?", "Why is not my card accepted"),
    ("How tall is Mount Everest?", "What is the height of Mount Everest?"),
    ("How many people live in Vienna?", "Tell me the population of Vienna."),
    ("What is the capital of France?", "Which city is the capital of France?"),
    ("Explain the theory of relativity", "Can you explain the theory of relativity?"),
    ("How does one apply for a visa?", "How do I apply for a visa?"),
    ("Is there a way to export the data?", "How can I export the data?"),
    ("Who is the author of Emma?", "Do you know who is the author of Emma?"),
    ("Wie kann ich mein Konto l\u00f6schen?", "Hallo, wie kann man mein Konto l\u00f6schen?"),
    ("Comment puis-je supprimer mon compte ?", "Comment faire pour supprimer mon compte ?"),
    ("\u00bfC\u00f3mo puedo borrar mi cuenta?", "\u00bfC\u00f3mo se puede borrar mi cuenta?"),
]  # fmt: skip
# ... and of other kinds, a word for another or another order, which no rule could let pass without letting others pass.
MISSED = [
    ("How do I reset my password?", "I forgot my password, how can I reset it?"),
    ("How do I cancel my subscription?", "I want to end my subscription."),
    ("What colour is the sky on Mars?", "What color is the sky on Mars?"),
    ("How do I reset my password?", "How do I reset the password?"),
    ("What causes rust?", "Why does iron rust?"),
    ("How long does delivery take?", "When will my order arrive?"),
    ("Can I get a refund?", "Do you give refunds?"),
    ("Do you ship to Canada?", "Is shipping to Canada possible?"),
    ("Recommend a book on Rome", "Which book on Rome would you recommend?"),
    ("How do plants make food?", "Explain how plants produce food."),
]


def chat(text: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "gpt-5", "messages": [{"role": "user", "content": text}], **fields}


def said(text: str) -> bytes | None:
    one = question("chat", chat(text))
    return one.exact if one else None


def test_the_tables_are_as_long_as_they_should_be() -> None:
    assert len({*APART}) >= 60
    assert len({*ALIKE, *MISSED}) >= 20


@pytest.mark.parametrize(("a", "b"), APART)
def test_another_question_never_matches(a: str, b: str) -> None:
    assert said(a) is None or said(a) != said(b)


def test_most_of_what_must_not_match_is_refused_by_what_is_said_and_not_by_silence() -> None:
    silent = [pair for pair in APART if said(pair[0]) is None or said(pair[1]) is None]
    assert not silent


@pytest.mark.parametrize(("a", "b"), ALIKE)
def test_the_same_question_in_other_words_matches(a: str, b: str) -> None:
    assert said(a) is not None
    assert said(a) == said(b)


@pytest.mark.parametrize(("a", "b"), MISSED)
def test_a_paraphrase_that_no_rule_allows_is_asked_anew(a: str, b: str) -> None:
    assert said(a) != said(b)


def test_paraphrases_that_match_are_close_in_english_and_less_so_in_other_languages() -> None:
    english: list[float] = []
    other: list[float] = []
    for pair in ALIKE:
        cosine = embedding.likeness(*embedding.vectors(list(pair)))
        (english if b'["en", ' in (said(pair[0]) or b"") else other).append(cosine)
    assert (len(english), len(other)) == (16, 3)
    assert min(english) > 0.85
    assert min(other) > 0.7


@pytest.mark.parametrize(
    "text",
    [
        "short", "", "   ", "x" * 601, "Where is it?\nAnd why?", "a\tb is what I mean", "nul \x00 in the text", "half \ud800 a character",
        "hidden\u200bcharacter is here", "\u202eright to left it is", "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u304b\u3001\u306f\u3044", "\u0641\u0646\u062c\u0627\u0646 \u0645\u0646 \u0627\u0644\u0642\u0647\u0648\u0629 please",
        "What does f(x) = 2 give?", "Why is foo(bar) slow?", "Fix ```x``` {} for me", "Is a < b here?", "What is 2 + 2 then?",
        "What is x^2 for me", "Look at https://example.org for me", "Is SELECT * slow for me?", "Answer this: why is it so?",
        "How do you spell theatre?", "Translate the cat is grey", "What is a synonym of begin?", "Was bedeutet das hier?", "12345678 90",
        "How many letters are in the name?", "Que signifie ce mot ?", "run $HOME/x; rm it all",
    ],
)  # fmt: skip
def test_what_cannot_be_guarded_matches_nothing(text: str) -> None:
    assert question("chat", chat(text)) is None


TEXT = "How do I reset my password?"
PART = {"type": "text", "text": TEXT}
USER = {"role": "user", "content": TEXT}
SYSTEM = {"role": "system", "content": "Be brief."}


def test_each_wires_plain_question_may_match() -> None:
    for endpoint, request in (
        ("chat", chat(TEXT)),
        ("chat", chat([PART])),
        ("chat", {"model": "m", "messages": [SYSTEM, {"role": "developer", "content": [PART]}, USER]}),
        ("messages", {"model": "m", "max_tokens": 9, "system": "Be brief.", "messages": [USER]}),
        (
            "messages",
            {"model": "m", "max_tokens": 9, "system": [PART], "messages": [{"role": "user", "content": [PART]}]},
        ),
        ("responses", {"model": "m", "input": TEXT, "instructions": "Be brief."}),
        ("responses", {"model": "m", "input": [{"type": "message", **USER}]}),
        ("responses", {"model": "m", "input": [{"role": "user", "content": [{"type": "input_text", "text": TEXT}]}]}),
    ):
        found = question(endpoint, request)
        assert found is not None, request
        assert found.text == TEXT


@pytest.mark.parametrize(
    ("endpoint", "request_"),
    [
        ("embeddings", {"model": "m", "input": TEXT}),
        ("chat", {"model": "m"}),
        ("chat", {"model": "m", "messages": "x"}),
        ("chat", {"model": "m", "messages": []}),
        ("chat", {"model": "m", "messages": [None]}),
        ("chat", {"model": "m", "messages": [SYSTEM]}),
        ("chat", {"model": "m", "messages": [{"content": TEXT}]}),
        ("chat", {"model": "m", "messages": [USER, USER]}),
        ("chat", {"model": "m", "messages": [USER, {"role": "assistant", "content": "So"}]}),
        ("chat", {"model": "m", "messages": [{"role": "assistant", "content": "So"}, USER]}),
        ("chat", {"model": "m", "messages": [{"role": "tool", "tool_call_id": "c", "content": "5"}, USER]}),
        ("chat", {"model": "m", "messages": [{"role": ["user"], "content": TEXT}]}),
        ("chat", chat([])),
        ("chat", chat([PART, PART])),
        ("chat", chat([PART, {"type": "image_url", "image_url": {"url": "data:,"}}])),
        ("chat", chat([{"type": "text", "text": 5}])),
        ("chat", chat([{"type": "input_audio", "input_audio": {}}])),
        ("chat", chat(None)),
        ("chat", chat(TEXT, modalities=["text", "audio"], audio={"voice": "x"})),
        ("chat", {"model": "m", "messages": [{"role": "system", "content": "Translate to German."}, USER]}),
        ("chat", {"model": "m", "messages": [{"role": "system", "content": "Classify the text."}, USER]}),
        ("messages", {"model": "m", "system": "Rewrite what the user says.", "messages": [USER]}),
        ("messages", {"model": "m", "container": "c_1", "messages": [USER]}),
        (
            "messages",
            {"model": "m", "messages": [{"role": "user", "content": [{"type": "document", "source": {}}, PART]}]},
        ),
        (
            "messages",
            {"model": "m", "messages": [{"role": "user", "content": [{"type": "tool_result", "content": "5"}]}]},
        ),
        ("responses", {"model": "m", "input": TEXT, "previous_response_id": "resp_1"}),
        ("responses", {"model": "m", "input": TEXT, "conversation": "conv_1"}),
        ("responses", {"model": "m", "input": TEXT, "prompt": {"id": "p"}}),
        ("responses", {"model": "m", "input": TEXT, "background": True}),
        ("responses", {"model": "m", "input": [{"type": "function_call_output", "output": "5"}, USER]}),
        ("responses", {"model": "m", "input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}),
        ("responses", {"model": "m", "instructions": "Proofread.", "input": TEXT}),
    ],
)
def test_any_other_request_matches_nothing(endpoint: str, request_: dict[str, Any]) -> None:
    assert question(endpoint, request_) is None


SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"properties": {"a": {}, "b": {}}}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"temperature": 0}, {"temperature": 0.5}),
        ({"temperature": 0}, {}),
        ({"model": "gpt-5"}, {"model": "gpt-5-mini"}),
        ({"max_tokens": 10}, {"max_tokens": 100}),
        ({"max_tokens": 10}, {"max_completion_tokens": 10}),
        ({"tools": [TOOL]}, {}),
        ({"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "none"}),
        ({"tools": [TOOL]}, {"tools": [{**TOOL, "function": {"name": "g", "parameters": {}}}]}),
        ({"response_format": SCHEMA}, {"response_format": {"type": "json_object"}}),
        (
            {"response_format": SCHEMA},
            {"response_format": json.loads(json.dumps(SCHEMA).replace('"a": {}, "b": {}', '"b": {}, "a": {}'))},
        ),
        ({"n": 1}, {"n": 2}),
        ({"seed": 1}, {"seed": "1"}),
        ({"logprobs": True}, {"logprobs": 1}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "high"}),
        ({"a_field_to_come": 1}, {"a_field_to_come": 2}),
        ({"messages": [SYSTEM, USER]}, {"messages": [USER]}),
        ({"messages": [SYSTEM, USER]}, {"messages": [USER, SYSTEM]}),
        ({"messages": [SYSTEM, USER]}, {"messages": [{**SYSTEM, "content": "Be brief. "}, USER]}),
        ({"messages": [SYSTEM, USER]}, {"messages": [{**SYSTEM, "role": "developer"}, USER]}),
        ({"messages": [USER]}, {"messages": [{**USER, "name": "ann"}]}),
        ({"messages": [{"role": "user", "content": [PART]}]}, {"messages": [USER]}),
    ],
)
def test_all_that_surrounds_the_text_must_be_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    one, other = question("chat", {**chat(TEXT), **a}), question("chat", {**chat(TEXT), **b})
    assert one is not None
    assert other is not None
    assert one.exact != other.exact


def test_the_wire_counts_and_how_the_answer_is_sent_does_not() -> None:
    plain = question("chat", chat(TEXT))
    assert plain == question("chat", chat(TEXT, stream=True, stream_options={"include_usage": True}))
    assert plain == question("chat", dict(reversed(chat(TEXT).items())))
    assert plain is not None
    other = question("messages", chat(TEXT))
    assert other is not None
    assert plain.exact != other.exact


def test_an_answer_kept_under_other_rules_matches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = said(TEXT)
    monkeypatch.setattr(likeness, "VERSION", likeness.VERSION + 1)
    assert said(TEXT) != before


PLAIN = st.sampled_from(
    [
        "how",
        "do",
        "I",
        "what",
        "is",
        "the",
        "of",
        "my",
        "account",
        "why",
        "can",
        "you",
        "please",
        "tell",
        "me",
        "a",
        "an",
        "are",
        "where",
        "find",
        "order",
        "to",
        "for",
        "in",
        "price",
        "cat",
        "big",
        "explain",
        "wie",
        "kann",
        "ich",
        "mein",
        "Konto",
        "comment",
        "puis-je",
        "le",
        "mot",
        "cómo",
        "puedo",
        "la",
        "cuenta",
        "isn't",
        "what's",
        "colour",
        "which",
        "with",
    ]
)
SENTENCES = st.lists(PLAIN, min_size=2, max_size=14).map(" ".join)
TURNING = st.one_of(
    st.integers(0, 10**6).map(str),
    st.sampled_from(
        ["not", "never", "no", "none", "without", "nor", "isn't", "nicht", "kein", "pas", "jamais", "sin", "nunca", "unsafe", "non-member", "two", "third", "percent", "5kg", "€7", "v1.2", "more", "less", "before", "after", "increase", "decrease", "min", "max", "include", "exclude", "enable", "disable", "true", "false", "was", "will", "must"]
    ),
    st.text("abcdefg the", min_size=1, max_size=8).flatmap(
        lambda text: st.sampled_from([f'"{text}"', f"'{text}'", f"\u201c{text}\u201d", f"\u00ab{text}\u00bb", f"`{text}`", f"\u2018{text}\u2019"])
    ),
    st.from_regex(r"[A-Z][a-z]{2,8}|[A-Z]{2,5}|[a-z]{3}[A-Z][a-z]{3}|@[a-z]{3,6}|#[a-z]{3,6}", fullmatch=True).filter(
        lambda name: name.lower() not in words.OPENERS | words.ASKING
    ),
)  # fmt: skip


@given(text=SENTENCES, put=TURNING, at=st.integers(0, 14))
def test_what_turns_a_meaning_round_changes_what_must_be_equal(text: str, put: str, at: int) -> None:
    parts = text.split()
    at = min(at, len(parts))
    one, other = said(text), said(" ".join([*parts[:at], put, *parts[at:]]))
    assert one is None or other is None or one != other


@given(text=SENTENCES, figure=st.integers(0, 9), other=st.integers(0, 9), at=st.integers(0, 14))
def test_another_digit_in_its_place_changes_what_must_be_equal(text: str, figure: int, other: int, at: int) -> None:
    parts = text.split()
    one, two = (" ".join([*parts[:at], f"4{digit}", *parts[at:]]) for digit in (figure, other))
    assert said(one) is None or (said(one) == said(two)) == (figure == other)


@given(st.text(max_size=40), st.sampled_from(["chat", "messages"]))
def test_any_text_is_a_question_or_none(text: str, endpoint: str) -> None:
    found = question(endpoint, chat(text))
    assert found is None or found.exact.isascii()
    agreement(text, text + " x")


def test_no_word_that_turns_a_meaning_round_may_be_said_in_another_way() -> None:
    patterns = " ".join(pattern.pattern for one in words.LANGUAGES.values() for pattern, _ in one.rewrites)
    loose = set(re.findall(r"[^\W\d_]+", patterns))
    # "The best way to" asks for a way; "how high", "how deep" and "how long is" ask for a height, a depth and a length.
    assert loose & (answers._OPPOSITES | set(answers._NUMBERS)) == {"best", "good", "high", "long"}
    assert not [word for word in loose if answers._NEGATION.search(word)]


def test_equal_answers_agree_wholly() -> None:
    assert agreement("It is  safe.\n", "It is safe.") == 1
    assert agreement("", " ") == 1
    assert agreement("", "It is safe.") == 0


LONG = (
    "Open the settings page and choose your profile. There you find a field for the old password and one for the new one. Fill in "
    "both, save the page, and wait for the mail that tells you of the change. "
)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("The fee is 10 euros.", "The fee is 100 euros."),
        ("The fee is 10 euros.", "The fee is 10 dollars."),
        ("It is -5 degrees.", "It is 5 degrees."),
        ("It is 5%.", "It is 5."),
        ("You need two forms.", "You need three forms."),
        ("You need 2 days for 3 forms.", "You need 3 days for 2 forms."),
        ("It is safe.", "It is not safe."),
        ("It is safe.", "It isn\u2019t safe."),
        ("It is safe.", "It is unsafe."),
        ("Yes, you may park here.", "No, you may park here."),
        ("Paris is the capital.", "Rome is the capital."),
        ("The capital is Paris.", "The capital is Rome."),
        ("Paris.", "Rome."),
        ("Ask in Paris or Bonn.", "Ask in Paris or Rome."),
        ("Press the upper button.", "Press the upper button in CAPITALS."),
        ("Prices will increase.", "Prices will decrease."),
        ("Das ist erlaubt.", "Das ist nicht erlaubt."),
        ("C'est permis.", "Ce n'est pas permis."),
        ("It takes 5 days. " + LONG, "It takes 7 days. " + LONG),
        ("Ask the desk in Vienna. " + LONG, "Ask the desk in Graz. " + LONG),
        ("You can do that at home. " + LONG, "You can not do that at home. " + LONG),
        ("Prices will increase. " + LONG, "Prices will decrease. " + LONG),
        ("Yes, that works. " + LONG, "No, that works. " + LONG),
        ("word " * 2100, "word " * 2101),
    ],
)
def test_answers_that_contradict_each_other_do_not_agree(a: str, b: str) -> None:
    assert agreement(a, b) == 0
    assert agreement(b, a) == 0


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("The capital of France is Paris.", "Paris is the capital of France."),
        ("It takes five days.", "It takes 5 days."),
        ("It is 5% of it.", "It is 5 percent of it."),
        ("It is 5% of it.", "It is 5 % of it."),
        ("You need 2 forms.", "It needs two forms."),
        ("It isn't allowed.", "It is not allowed."),
        ("Mount Everest is 8,849 metres tall.", "Mount Everest is 8849 m high."),
        ("Yes, you can park here on Sundays.", "You can park here on Sundays."),
        ("Go to Settings and open Security.", "Open the Settings, then go to Security."),
        (
            LONG,
            "Go to settings, open your profile, and enter the old password and then the new one. Save, then wait for a mail.",
        ),
        (LONG, LONG + "It takes 5 minutes. Ask Ann if it fails."),
    ],
)
def test_answers_in_other_words_agree_as_far_as_their_vectors_do(a: str, b: str) -> None:
    assert agreement(a, b) == pytest.approx(embedding.likeness(*embedding.vectors([a, b])), abs=0.02)
    assert agreement(a, b) == agreement(b, a) > 0.7


def test_longer_answers_agree_by_the_share_of_figures_and_names_that_both_have() -> None:
    start, end = "It costs 10 euros and takes 5 days. " + LONG, "It costs 10 euros and takes 7 days. " + LONG
    cosine = embedding.likeness(*embedding.vectors([start, end]))
    assert agreement(start, end) == pytest.approx(cosine / 2)
    named, other = LONG + "Ask Ann or Bob in Graz.", LONG + "Ask Ann or Eve in Linz."
    assert agreement(named, other) == pytest.approx(embedding.likeness(*embedding.vectors([named, other])) / 3)
