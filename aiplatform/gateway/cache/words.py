"""What the guard of near matches knows of English, German, French and Spanish.

The lists of what may be said in another way are short on purpose: what stands in none must be equal.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

HOW = "<how>"
WHAT = "<what>"


@dataclass(frozen=True, slots=True)
class Language:
    """Its commonest words, and what may be said in another way at a text's beginning, tried in order."""

    common: frozenset[str]
    rewrites: tuple[tuple[re.Pattern[str], str], ...]


def of(words: str) -> frozenset[str]:
    """A list written as one text."""
    return frozenset(words.split())


def _beginnings(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(f"^(?:{pattern})", re.IGNORECASE), said) for pattern, said in pairs)


_ASKING = r"(?:what|who|where|when|why|which|how)\b"
_TOLD = r"(?:tell me|show me|explain|describe|let me know|help me)\b"
_MAY_FOLLOW = rf"(?={_ASKING}|{_TOLD}|(?:please|kindly|i|my|is|are|do|does|can|could|would|will)\b)"
_TELL = (
    r"(?:tell me|let me know|i (?:want|need|would like) to know|i (?:am|was) (?:just )?(?:wondering|curious))"
    r"[,:]? (?=" + _ASKING + ")"
)
_HOW = (
    r"(?:how (?:do|can) i|how (?:does|can) one|how to|what is (?:the (?:best )?|a (?:good )?)way to|what are the steps to"
    r"|what steps (?:do|should) i (?:take|follow) to|what do i (?:need|have) to do to|show me how to|explain how to"
    r"|is there a(?:ny)? way to|i (?:want|need|would like) to know how (?:to|i can)) "
)
# What is asked of a thing: "How tall is it" and "What is the height of it".
_ASKED = {
    "how (?:tall|high) is": "height",
    "how old is": "age",
    "how long is": "length",
    "how deep is": "depth",
    "how wide is": "width",
    "how heavy is": "weight",
    "how many people live in": "population",
}
_ENGLISH = Language(
    common=of(
        "the a an is are was were do does did how what who where when why which can could should would will i my me "
        "we our you your it this that of to in on for with from by and or not if please there have has"
    ),
    rewrites=_beginnings([
        (r"(?:hi|hello|hey|greetings|good (?:morning|afternoon|evening)|excuse me)(?: there)?[,.!] " + _MAY_FOLLOW, ""),
        (rf"(?:please|kindly),? (?={_ASKING}|{_TOLD}|(?:can|could|would|will) you\b)", ""),
        (rf"(?:can|could|would|will) you (?:please |kindly )?(?={_TOLD})", ""),
        (r"do you know (?=(?:what|who|where|when|which) (?:is|are|was|were)\b)", ""),
        (_TELL, ""),
        (_HOW, HOW + " "),
        *((f"{asked} ", f"{WHAT} {noun} of ") for asked, noun in _ASKED.items()),
        (r"which (?:city )?is the (?=capital of )", WHAT + " "),
        # Only what something is *of* something: "tell me the truth" asks for no definition.
        (r"(?:what is|tell me) the (?=\w+(?: \w+)? (?:of|between)\b)", WHAT + " "),
    ]),
)  # fmt: skip
_GERMAN = Language(
    common=of(
        "der die das den dem des ein eine einen einem einer ist sind war waren wie was wer wo wann warum welche "
        "welcher welches kann können ich du sie wir mein meine meinen nicht kein keine und oder mit von für auf zu im "
        "in bitte es man wird"
    ),
    rewrites=_beginnings(
        [
            (r"(?:hallo|hi|guten (?:tag|morgen|abend))(?: zusammen)?[,.!] ", ""),
            (r"bitte,? (?=(?:wie|was|wer|wo|wann|warum|erkläre|beschreibe|zeige|sage?) )", ""),
            (r"(?:wie (?:kann|könnte) (?:ich|man)|auf welche weise kann (?:ich|man)) ", HOW + " "),
        ]
    ),
)
_FRENCH_ASKING = r"(?=(?:comment|quel|quelle|qui|où|quand|pourquoi|combien)\b)"
_FRENCH = Language(
    common=of(
        "le la les un une des du de est sont était comment quel quelle quels quelles qui où quand pourquoi combien je "
        "tu vous nous mon ma mes ne pas et ou avec pour dans sur puis-je peut-on il elle ce cette que qu'est-ce"
    ),
    rewrites=_beginnings(
        [
            (r"(?:bonjour|salut|bonsoir)(?: à tous)?[,.!] ", ""),
            (
                r"(?:peux-tu|pouvez-vous|pourriez-vous|pourrais-tu) me dire " + _FRENCH_ASKING,
                "",
            ),
            (r"dis-moi " + _FRENCH_ASKING, ""),
            (r"(?:comment (?:puis-je|peut-on|pourrais-je|faire pour)|de quelle manière puis-je|comment) ", HOW + " "),
        ]
    ),
)
_SPANISH = Language(
    common=of(
        "el la los las un una unos unas de del es son era cómo qué quién dónde cuándo cuál cuáles cuánto puedo puede "
        "se mi mis yo tú usted no y o con para por en sobre está están hay que al"
    ),
    rewrites=_beginnings(
        [
            (r"(?:hola|buenos días|buenas tardes|buenas noches)(?: a todos)?[,.!] ", ""),
            (r"por favor,? (?=[¿]?(?:cómo|qué|quién|dónde|cuándo|cuál|explica|dime|describe)\b)", ""),
            (r"(?:(?:puedes|puede|podrías|podría) decirme|dime) (?=(?:cómo|qué|quién|dónde|cuándo|cuál|cuánto)\b)", ""),
            (
                r"¿?(?:cómo (?:puedo|se puede|podría)|de qué manera puedo|qué (?:debo|tengo que) hacer para|cómo) ",
                HOW + " ",
            ),
        ]
    ),
)
LANGUAGES = {"de": _GERMAN, "en": _ENGLISH, "es": _SPANISH, "fr": _FRENCH}

POLITE_END = re.compile(
    r"[,.!?] (?:please|thanks|thank you|thanks in advance|thx|bitte|danke|vielen dank|merci|s'il (?:te|vous) pla[iî]t"
    r"|por favor|gracias)"
    r"[.!?]*$",
    re.IGNORECASE,
)
# A sentence may begin with one of these in a small or a capital letter. None is a name.
OPENERS = of(
    "how what who where when why which is are was were do does did can could should would explain describe list give "
    "show convert calculate compare suggest recommend find create tell wie was wer wo wann warum welche kann ist sind "
    "erkläre beschreibe comment quel quelle qui où quand pourquoi est expliquez explique cómo qué quién dónde cuándo "
    "cuál explica describe"
)
# A text that begins with one of these asks with a mark at its end and without it.
ASKING = of(
    f"{HOW} {WHAT} how what who where when why which wie was wer wo wann warum welche comment quel quelle qui où quand "
    "pourquoi cómo qué quién dónde cuándo cuál explain describe list give show convert calculate compare suggest "
    "recommend find create tell erkläre beschreibe expliquez explique explica"
)
# In English. Those of names and nouns with 's are left alone: they may also be his.
CONTRACTIONS = {
    "can't": "can not", "cannot": "can not", "won't": "will not", "shan't": "shall not", "i'm": "i am", "i'd": "i would",
    "i'll": "i will", "i've": "i have", "you're": "you are", "we're": "we are", "they're": "they are", "what's": "what is",
    "who's": "who is", "where's": "where is", "how's": "how is", "when's": "when is", "why's": "why is", "it's": "it is",
    "that's": "that is", "there's": "there is",
}  # fmt: skip

# In a text about words the words are the matter: nothing may be said in another way there.
ABOUT_WORDS = re.compile(
    r"\b(?:translat\w*|spell\w*|rhym\w*|synonyms?|antonyms?|words?|letters?|sentences?|phrases?|pronounc\w*|rewrit\w*|rephras\w*"
    r"|proofread\w*|paraphras\w*|summari[sz]\w*|repeat\w*|echo|means?|meanings?|defin\w*|anagrams?|reversed?|characters?|tokens?"
    r"|grammar|verbs?|nouns?|terms?|call(?:ed)?|classif\w*|sentiment|correct(?:ly)?|capitali[sz]\w*|lower-?case|upper-?case|syllables?"
    r"|vowels?|consonants?|palindromes?|lyrics?|quot\w+|titles?|say|said|write|typed?|etymolog\w*|punctuat\w*|abbreviat\w*|acronyms?"
    r"|übersetz\w*|wort|wörter|worte|satz|bedeutet|bedeutung|buchstab\w*|reim\w*|heißt|traduis\w*|tradui\w*|mots?|signifie|phrase"
    r"|lettres?|rime\w*|traduc\w*|palabras?|significa\w*|frases?|letras?|rima\w*|oraci[oó]n)\b",
    re.IGNORECASE,
)
# A system prompt that works on the user's text, instead of answering it.
WORKS_ON_TEXT = re.compile(
    r"\b(?:translat|classif|sentiment|rewrit|rephras|proofread|paraphras|grammar|spell|extract|transcri|tokeni|pars(?:e|ing)|summar"
    r"|categori|label|annotat|normali[sz]|detect|moderat|counts?\b|counting|echo|repeat|embed|rate the|score"
    r"|übersetz|klassifi|korrigier|tradui|traduc|corrige|resum)",
    re.IGNORECASE,
)
