"""What a sentence promises: money back, something free, a discount, a guarantee, a thing done.

A promise is a clause without a negation that names such a thing and grants it. It rests on one sentence of the evidence that names the
same thing together with every weighty word of the clause: "express shipping is free" does not rest on "standard shipping is free".
The words are in promises.toml.
"""

import re
import tomllib
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from server.desk.quantities import narrow

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；;\n])")
_CLAUSE_END = re.compile(r"[,，;；:：]\s*|\s[-–—]+\s|——|\b(?:but|however|and (?=we|i|you|your|it))|但是?|不过|而且|并且", re.IGNORECASE)
_QUESTION = re.compile(r"[?？]\s*$")


@dataclass(frozen=True, slots=True)
class Claim:
    """The things that a sentence of evidence names without denying them, and its weighty words."""

    things: frozenset[str]
    weights: frozenset[str]


@dataclass(frozen=True, slots=True)
class Promise:
    """A clause at `[start, end)` that promises `thing`, with its weighty words. `is_own`: in the bot's own person, or said to be done."""

    thing: str
    weights: frozenset[str]
    is_own: bool
    start: int
    end: int


def is_negated(clause: str) -> bool:
    """Whether the clause denies, or limits with "only", what it names."""
    words = _words("clauses")
    return bool(words["negation"].search(_words("statements")["free"].sub("", words["affirmed"].sub("", clause))))


@lru_cache(maxsize=2048)
def claims(text: str) -> tuple[Claim, ...]:
    """What a text of the evidence grants, sentence by sentence."""
    found = []
    for sentence in SENTENCE_END.split(narrow(text)):
        clauses = (clause for clause in _CLAUSE_END.split(sentence) if not is_negated(clause))
        things = frozenset(thing for clause in clauses for thing in _named("statements", clause) | _named("granted", clause))
        found += [Claim(things, _named("weights", sentence))] if things else []
    return tuple(found)


def promises(text: str) -> list[Promise]:
    """The promises that `text` makes, in its order. Questions make none."""
    plain = narrow(text)
    return [
        Promise(thing, _named("weights", plain[start:end]), is_own, start, end)
        for first, last in _pieces(plain, SENTENCE_END, 0, len(plain))
        if not _QUESTION.search(plain[first:last])
        for start, end in _pieces(plain, _CLAUSE_END, first, last)
        for thing, is_own in _granted(plain[start:end])
    ]


def _granted(clause: str) -> list[tuple[str, bool]]:
    words = _words("clauses")
    if is_negated(clause):
        return []
    if words["done"].search(clause):
        return [("something done", True)]
    if words["talk"].search(clause):
        return []
    things = _named("statements", clause) | (_named("granted", clause) if words["grant"].search(clause) else frozenset())
    return [(thing, bool(words["own"].search(clause))) for thing in sorted(things)]


def _pieces(text: str, border: re.Pattern[str], start: int, end: int) -> list[tuple[int, int]]:
    borders = [match.span() for match in border.finditer(text, start, end)]
    return list(zip((start, *(last for _, last in borders)), (*(first for first, _ in borders), end), strict=True))


def _named(section: str, text: str) -> frozenset[str]:
    return frozenset(name for name, words in _words(section).items() if words.search(text))


@cache
def _words(section: str) -> dict[str, re.Pattern[str]]:
    lexicon = tomllib.loads((Path(__file__).parent / "promises.toml").read_text(encoding="utf-8"))[section]
    return {
        name: re.compile(rf"(?<![a-z-])(?:{each['en']})(?![a-z])|{each['zh']}".replace("\n", ""), re.IGNORECASE)
        for name, each in lexicon.items()
    }
