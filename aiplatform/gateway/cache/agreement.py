"""How far two answers to one question say the same: by this would-be near matches are scored against real answers."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from aiplatform.gateway.cache import words
from aiplatform.lib import embedding

BRIEF_WORDS = 30
_NEGATION = re.compile(
    r"\b(?:not|\w+n't|cannot|never|no|none|nobody|nothing|nowhere|neither|nor|without|hardly|barely|rarely|seldom|unable|unless"
    r"|except|lacks?|lacking|fails?|failed|refus\w+|den(?:y|ies|ied)|un(?:safe|able|likely|true|known|certain|necessary|available|"
    r"supported|healthy|fair|wise|clear|usual|related|lawful|limited|stable|secure|friendly|happy|wanted|expected)"
    r"|non-?\w{3,}|in(?:correct|valid|active|accurate|complete|effective|eligible|sufficient|visible|appropriate)|il(?:legal|logical)"
    r"|im(?:possible|proper|polite|moral|mature)|ir(?:regular|relevant|responsible|reversible)"
    r"|nicht|nichts|nie|niemals|niemand|kein\w*|nirgends|weder|ohne|kaum|un(?:möglich|sicher|gültig|nötig|wahrscheinlich|gesund)"
    r"|ne|n'\w+|pas|jamais|rien|aucun\w*|nulle|ni|sans|guère|sin|nunca|nada|nadie|ningun\w*|ningún|tampoco|jamás|imposible)\b",
    re.IGNORECASE,
)
_OPPOSITES = words.of(
    "yes no true false right wrong correct incorrect more less fewer most least before after above below increase "
    "increases increased decrease decreases decreased rise rises fall falls min max minimum maximum last include "
    "includes exclude excludes enable enables enabled disable disables disabled opened closed allow allowed forbid "
    "forbidden legal illegal safe unsafe dangerous good bad better worse best worst high higher highest low lower "
    "lowest big bigger small smaller large larger long longer short shorter fast faster slow slower early earlier "
    "late later always never none must inside outside north south east west hot cold start stop begin end add remove "
    "buy sell accept reject pass fail positive negative even odd same different possible impossible only already ja "
    "nein wahr falsch richtig mehr weniger immer nie keine besser schlechter gut schlecht erlaubt verboten größer "
    "kleiner mindestens höchstens letzte oui non vrai faux plus moins avant après toujours jamais aucun bon mauvais "
    "meilleur pire permis interdit dernier sí verdadero falso más menos antes después siempre nunca ninguno bueno "
    "malo mejor peor permitido prohibido último mínimo máximo"
)
# Not "one" and its like: in each of these languages it is, or may stand for, an article.
_SPELLED = """
0: zero null zéro cero
2: two twice double both zwei zweimal deux dos
3: three thrice triple drei trois tres
4: four vier quatre cuatro
5: five fünf cinq cinco
6: six sechs seis
7: seven sieben sept siete
8: eight acht huit ocho
9: nine neun neuf nueve
10: ten zehn dix diez
11: eleven elf onze
12: twelve dozen zwölf dutzend douze douzaine doce docena
13: thirteen dreizehn treize trece
14: fourteen vierzehn quatorze catorce
15: fifteen fünfzehn quinze quince
16: sixteen sechzehn seize dieciséis
17: seventeen siebzehn
18: eighteen achtzehn
19: nineteen neunzehn
20: twenty zwanzig vingt veinte
30: thirty dreißig trente treinta
40: forty vierzig quarante cuarenta
50: fifty fünfzig cinquante cincuenta
60: sixty sechzig soixante sesenta
70: seventy siebzig setenta
80: eighty achtzig ochenta
90: ninety neunzig noventa
100: hundred hundert cent cien ciento
1000: thousand tausend mille mil
1000000: million millionen millions millón millones
1000000000: billion milliarde milliard
1/2: half halb hälfte moitié demi mitad medio
1/4: quarter viertel quart cuarto
1st: first erste erster premier primero
2nd: second zweite zweiter deuxième segundo
3rd: third dritte dritter troisième tercero
january: january januar janvier enero
february: february februar février febrero
march: march märz mars marzo
april: april avril abril
june: june juni juin junio
july: july juli juillet julio
august: august août agosto
september: september septembre septiembre
october: october oktober octobre octubre
november: november novembre noviembre
december: december dezember décembre diciembre
monday: monday montag lundi lunes
tuesday: tuesday dienstag mardi martes
wednesday: wednesday mittwoch mercredi
thursday: thursday donnerstag jeudi jueves
friday: friday freitag vendredi viernes
saturday: saturday samstag samedi sábado
sunday: sunday sonntag dimanche domingo
%: percent prozent pourcent porcentaje
"""
_NUMBERS = {
    word: figure
    for figure, _, spelled in (line.partition(": ") for line in _SPELLED.strip().splitlines())
    for word in spelled.split()
}
_UNITS = words.of(
    "% mg g kg t mm cm m km ml l s ms min h hour hours minute minutes second seconds day days week weeks month months "
    "year years dollar dollars cent cents euro euros pound pounds yen percent inch inches foot feet mile miles gram "
    "grams kilogram kilograms liter liters litre litres meter meters metre metres kilometer kilometers kilometre "
    "kilometres degree degrees kb mb gb tb w kw v tag tage tagen woche wochen monat monate monaten jahr jahre jahren "
    "stunde stunden minuten sekunden jour jours semaine semaines mois ans année années heure heures día días "
    "semana semanas mes meses año años hora horas minutos segundos"
)
_WORD = re.compile(r"[^\s\W_](?:[\w.,:/@'%°+-]*[\w%°+])?|[$€£¥%]")
_SENTENCE_END = re.compile(r"[.!?:][\"'\u201d)*_]*$|^[-*•#]+$")
_FIGURE = re.compile(r"\d")
_COMMON = frozenset().union(*(one.common for one in words.LANGUAGES.values()), words.OPENERS)
# How answers begin without naming anything.
_PLEASANT = words.of("sure certainly of great good hello hi well okay ok absolutely here it they these those")
_NO_NAMES = _COMMON | _PLEASANT | _OPPOSITES
_BEING = words.of(
    "is are was were has had have can will would should may must does ist sind war hat kann wird est sont a peut es era "
    "son fue tiene"
)


def agreement(a: str, b: str) -> float:
    """How far two answers say the same, from 0 to 1; made to err downwards.

    1 if they are equal up to white space. Else 0 where they contradict each other by what vectors do not see, and the cosine of
    their vectors where they do not. Two answers of at most 30 words contradict each other if their numbers (with units, in
    order), names, opposites or counts of negations differ; a first word that only one of them has counts as a name, since
    "Paris is." and "Rome is." differ by nothing else. Longer answers to one question differ in detail, so there one may say
    more than the other: they contradict each other if each has a number, or each a name (also one that begins a sentence as
    its subject), that the other lacks, or if their first sentences, which carry the verdict, differ in opposites or in
    whether they negate. An answer is read whole or not at all: one longer than the model reads agrees with none but its
    equal. Raises NotAvailable where there is no model.
    """
    a, b = (" ".join(text.replace("\u2019", "'").split()) for text in (a, b))
    if a == b:
        return 1.0
    if not (a and b and embedding.is_whole(a) and embedding.is_whole(b)) or _contradict(a, b):
        return 0.0
    return max(0.0, embedding.likeness(*embedding.vectors([a, b])))


@dataclass(frozen=True, slots=True)
class _Claims:
    """What of an answer must not differ."""

    numbers: list[str]
    names: set[str]
    starts: set[str]  # first words of sentences, of which one cannot see whether they are names
    subjects: set[str]  # those of them that are said to be something
    words: set[str]  # all, in small letters
    negations: int
    opposites: frozenset[str]


def _contradict(a: str, b: str) -> bool:
    left, right = _claims(a), _claims(b)
    if max(len(a.split()), len(b.split())) <= BRIEF_WORDS:
        return _brief(left) != _brief(right) or _names(left, right, left.starts) != _names(right, left, right.starts)
    verdicts = [_claims(_first_sentence(text)) for text in (a, b)]
    return (
        _each_has_more(set(left.numbers), set(right.numbers))
        or _each_has_more(_names(left, right, left.subjects), _names(right, left, right.subjects))
        or verdicts[0].opposites != verdicts[1].opposites
        or bool(verdicts[0].negations) != bool(verdicts[1].negations)
    )


def _brief(claims: _Claims) -> tuple[list[str], int, frozenset[str]]:
    return claims.numbers, claims.negations, claims.opposites


def _names(one: _Claims, other: _Claims, starts: set[str]) -> set[str]:
    """The names of one answer in small letters, with such first words of its sentences as the other answer has nowhere."""
    return one.names | {start for start in starts if start in other.names or start not in other.words}


def _each_has_more(left: set[str], right: set[str]) -> bool:
    return bool(left - right) and bool(right - left)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


def _claims(text: str) -> _Claims:
    found = list(_placed(text))
    small = [word.lower() for word, _ in found]
    starts = [at for at, (_, is_start) in enumerate(found) if is_start and small[at] not in _NO_NAMES]
    return _Claims(
        numbers=_numbers(small),
        names={word.lower() for word, is_start in found if _is_name(word) and not is_start},
        starts={small[at] for at in starts},
        subjects={small[at] for at in starts if small[at + 1 : at + 2] and small[at + 1] in _BEING},
        words=set(small),
        negations=len(_NEGATION.findall(text)),
        opposites=_OPPOSITES.intersection(small),
    )


def _placed(text: str) -> Iterator[tuple[str, bool]]:
    """Each word, and whether it begins a sentence or the text."""
    is_start = True
    for part in text.split():
        for word in _WORD.findall(part):
            yield word, is_start
            is_start = False
        is_start = is_start or bool(_SENTENCE_END.search(part))


def _is_name(word: str) -> bool:
    return (
        word != "I" and not word.startswith("I'") and (word != word.lower() or bool(re.search(r"[_@/]|\w\.\w", word)))
    )


def _numbers(said: list[str]) -> list[str]:
    """In figures, each with the unit that follows it."""
    found = []
    for at, word in enumerate(said):
        number = word if _FIGURE.search(word) else _NUMBERS.get(word)
        if number:
            unit = said[at + 1] if at + 1 < len(said) and said[at + 1] in _UNITS else ""
            found.append(f"{number} {unit}")
        elif word in "$€£¥%":
            found.append(word)
    return found
