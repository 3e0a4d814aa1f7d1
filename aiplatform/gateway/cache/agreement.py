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
    "no true false right wrong correct incorrect more less fewer most least before after above below increase "
    "increases increased decrease decreases decreased rise rises fall falls min max minimum maximum last include "
    "includes exclude excludes enable enables enabled disable disables disabled opened closed allow allowed forbid "
    "forbidden legal illegal safe unsafe dangerous good bad better worse best worst high higher highest low lower "
    "lowest big bigger small smaller large larger long longer short shorter fast faster slow slower early earlier "
    "late later always never none must inside outside north south east west hot cold start stop begin end add remove "
    "buy sell accept reject pass fail positive negative even odd same different possible impossible only already "
    "nein wahr falsch richtig mehr weniger immer nie keine besser schlechter gut schlecht erlaubt verboten größer "
    "kleiner mindestens höchstens letzte non vrai faux plus moins avant après toujours mais aucun bon mauvais "
    "meilleur pire permis interdit dernier verdadero falso más menos antes después siempre nunca ninguno bueno "
    "malo mejor peor permitido prohibido último mínimo máximo"
)
# Not "one" and its like: in each of these languages it is, or may stand for, an article.
_SPELLED = """
0: zero null zéro cero
2: two twice double zwei zweimal deux dos
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
"""
_NUMBERS = {
    word: figure
    for figure, _, spelled in (line.partition(": ") for line in _SPELLED.strip().splitlines())
    for word in spelled.split()
}
_MEASURES = """
%: % percent prozent pourcent
mg: mg milligram milligrams
g: g gram grams gramm gramme grammes gramos
kg: kg kilo kilos kilogram kilograms kilogramm kilogrammes kilogramos
t: t ton tons tonne tonnes tonnen toneladas
mm: mm millimeter millimeters millimetre millimetres
cm: cm centimeter centimeters centimetre centimetres
m: m meter meters metre metres mètres metros
km: km kilometer kilometers kilometre kilometres kilometern kilomètres kilómetros
ml: ml milliliter milliliters millilitre millilitres
l: l liter liters litre litres litern litros
ms: ms millisecond milliseconds
s: s sec second seconds sekunde sekunden seconde secondes segundo segundos
min: min minute minutes minuten minuto minutos
h: h hour hours stunde stunden heure heures hora horas
day: day days tag tage tagen jour jours día días
week: week weeks woche wochen semaine semaines semana semanas
month: month months monat monate monaten mois mes meses
year: year years jahr jahre jahren ans année années año años
usd: usd dollar dollars
eur: eur euro euros
gbp: gbp pound pounds
cent: cent cents
yen: yen jpy
in: inch inches
ft: foot feet
mi: mile miles
°: ° degree degrees grad degrés grados
kb: kb kilobyte kilobytes
mb: mb megabyte megabytes
gb: gb gigabyte gigabytes
tb: tb terabyte terabytes
w: w watt watts
kw: kw kilowatt kilowatts
v: v volt volts
"""
_UNITS = {
    word: unit
    for unit, _, spelled in (line.partition(": ") for line in _MEASURES.strip().splitlines())
    for word in spelled.split()
}
_WORD = re.compile(r"(?:[-+\u2212](?=\d))?[^\s\W_](?:[\w.,:/@'%°+-]*[\w%°+])?|[$€£¥%°]")
_SENTENCE_END = re.compile(r"[.!?:][\"'\u201d)*_]*$|^[-*•#]+$")
_FIGURE = re.compile(r"\d")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_WHOLE_ANSWER_WORDS = 3
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

    1 if they are equal up to white space. Else the cosine of their vectors, which knows wording, times what the answers share
    of that which vectors do not see; so 0 where they contradict each other:

    - Answers of at most 30 words do if their numbers (with units, in order) or counts of negations differ, if each has a name
      that the other lacks or only one has any, or if each has an opposite that the other lacks ("safe", "unsafe").
    - Longer ones to one question differ in detail, so there numbers and names count by the share of the fewer that are in
      the other too. They contradict each other by their first sentences, which carry the verdict: if only one negates, or
      each has an opposite that the other lacks.

    A sentence's first word has a capital in any case. It is taken for a name if it is said to be something ("Paris is") or
    stands almost alone, and the other answer has it nowhere. An answer is read whole or not at all: one longer than the model
    reads agrees with none but its equal. Raises NotAvailable where there is no model.
    """
    a, b = (" ".join(text.replace("\u2019", "'").split()) for text in (a, b))
    if a == b:
        return 1.0
    share = _share(a, b) if a and b and embedding.is_whole(a) and embedding.is_whole(b) else 0.0
    return share * max(0.0, embedding.likeness(*embedding.vectors([a, b]))) if share else 0.0


@dataclass(frozen=True, slots=True)
class _Claims:
    """What of an answer must not differ."""

    numbers: list[str]
    names: set[str]
    starts: set[str]  # first words of sentences that may be names
    words: set[str]  # all, in small letters
    negations: int
    opposites: frozenset[str]


def _share(a: str, b: str) -> float:
    """What two answers share of their claims, from 0, where they contradict each other, to 1."""
    left, right = _claims(a), _claims(b)
    names = _names(left, right), _names(right, left)
    if max(len(a.split()), len(b.split())) <= BRIEF_WORDS:
        is_same = left.numbers == right.numbers and left.negations == right.negations
        return float(is_same and not _each_has_more(left.opposites, right.opposites) and _overlap(*names) == 1)
    one, other = (_claims(_first_sentence(text)) for text in (a, b))
    if _each_has_more(one.opposites, other.opposites) or bool(one.negations) != bool(other.negations):
        return 0.0
    numbers = set(left.numbers), set(right.numbers)
    return min(_overlap(*pair) if all(pair) else 1.0 for pair in (numbers, names))


def _names(one: _Claims, other: _Claims) -> set[str]:
    """The names of one answer in small letters, with such first words of its sentences as the other answer has nowhere."""
    return one.names | {start for start in one.starts if start in other.names or start not in other.words}


def _overlap(left: set[str], right: set[str]) -> float:
    """The share of the smaller set that is in the other; 1 if both are empty, 0 if one is."""
    fewer = min(len(left), len(right))
    return len(left & right) / fewer if fewer else float(left == right)


def _each_has_more(left: frozenset[str], right: frozenset[str]) -> bool:
    return bool(left - right) and bool(right - left)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


def _claims(text: str) -> _Claims:
    found = list(_placed(text))
    small = [word.lower() for word, _ in found]
    is_short = len(found) <= _WHOLE_ANSWER_WORDS
    first = [at for at, (_, is_start) in enumerate(found) if is_start and small[at] not in _NO_NAMES]
    return _Claims(
        numbers=_numbers(small),
        names={word.lower() for word, is_start in found if _is_name(word) and not is_start},
        starts={small[at] for at in first if is_short or _BEING.intersection(small[at + 1 : at + 2])},
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
            unit = _UNITS.get(said[at + 1], "") if at + 1 < len(said) else ""
            figure, sign = (number[:-1], number[-1]) if number[-1] in "%°" else (number, "")
            found.append(f"{_THOUSANDS.sub('', figure)} {unit or sign}")
        elif word in "$€£¥":
            found.append(word)
    return found
