"""The checks: pure functions from an answer and what it may rest on to what is wrong with it. No I/O, nothing of the server.

Each takes text of an answer, whole or a sentence, and returns violations whose spans are places in that text.
"""

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from backends.mini.shop import Language
from server.desk.promises import SENTENCE_END, claims, is_negated, promises
from server.desk.quantities import Kind, Quantity, narrow, read
from server.language import HAN, LATIN_WORD

Check = Kind | Literal["promise", "leak", "language", "length", "must_not_say", "loop", "repeat"]

# An answer leaks when it shares this many runs of so many words (English) or characters (Chinese) with the secret text.
LEAK_EN, LEAK_ZH = (4, 5), (6, 8)
# Or so many letters, or Chinese characters, in a row, however they are spaced: forwards, backwards or in rot13.
SPELT_LETTERS, SPELT_HAN = 36, 13
FOREIGN_HAN, FOREIGN_WORDS = 2, 4


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong: the check, the place `[start, end)` in the text that was checked, and one sentence."""

    kind: Check
    span: tuple[int, int]
    detail: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What a policy forbids in one language: `never` is phrases with their patterns, `secrets` the text that is for the model alone."""

    max_chars: int = 4000
    never: tuple[tuple[str, re.Pattern[str]], ...] = ()
    secrets: tuple[str, ...] = ()


class Known:
    """What some texts state."""

    def __init__(self, texts: Iterable[str]) -> None:
        found = [quantity for text in texts for quantity in read(text)]
        self._keys = {quantity.key for quantity in found}
        self._values = {quantity.value for quantity in found if quantity.value is not None}
        self._bare = {
            quantity.value for quantity in found if quantity.value is not None and quantity.kind == "number" and not quantity.unit
        }
        self._dates = [quantity.key[1:] for quantity in found if quantity.key[0] == "date"]

    def holds(self, one: Quantity) -> bool:
        """Whether the texts state it. A number without a unit, here or there, agrees with any unit; a date without a year with any year."""
        if one.key in self._keys or (one.value is not None and one.kind != "date" and one.value in self._bare):
            return True
        if one.key[0] == "number":
            return one.value in self._values
        if one.key[0] == "date":
            return any(
                all(a == b or not a or (not b and place == 0) for place, (a, b) in enumerate(zip(one.key[1:], known, strict=True)))
                for known in self._dates
            )
        return one.kind == "url" and any(key[0] == "url" and str(key[1]).startswith(f"{one.key[1]}/") for key in self._keys)


@dataclass(frozen=True)
class Evidence:
    """What an answer may rest on: what the shop states (passages, facts), what its policy promises, what tools told, what was said before.

    What was said, by the customer above all, may be quoted; it promises nothing. `answers` are those that another must not be the same as.
    """

    stated: tuple[str, ...]
    promised: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()

    @cached_property
    def known(self) -> Known:
        return Known((*self.stated, *self.promised, *self.tools))

    @cached_property
    def heard(self) -> Known:
        return Known(self.said)

    @cached_property
    def text(self) -> str:
        return narrow("\n".join((*self.stated, *self.promised, *self.tools, *self.said))).casefold()


def check(answer: str, evidence: Evidence, rules: Rules, language: Language) -> list[Violation]:
    """Everything that is wrong with an answer, or with one sentence of it, to a customer who reads `language`."""
    return [
        *check_numbers(answer, evidence),
        *check_promises(answer, evidence),
        *check_language(answer, evidence, language),
        *check_phrases(answer, rules),
        *check_leak(answer, evidence, rules),
        *check_length(answer, rules),
        *check_loop(answer),
    ]


def check_numbers(answer: str, evidence: Evidence) -> list[Violation]:
    """Numbers, dates, times, prices, percentages, codes, e-mails, phones and URLs that stand nowhere in the evidence.

    What only the customer said may be repeated, but not granted: "within 60 days" needs the shop's word.
    """
    found = []
    for one in read(answer):
        if evidence.known.holds(one):
            continue
        span, words = (one.start, one.end), answer[one.start : one.end]
        if not evidence.heard.holds(one):
            found.append(Violation(one.kind, span, f"{words!r} stands in no passage, policy or tool result"))
        elif _grants(answer, one):
            found.append(Violation(one.kind, span, f"only the customer said {words!r}"))
    return found


_LIMIT_BEFORE = re.compile(r"\b(?:within|up to|until|for|have|get|for a full)\s+(?:the )?(?:first )?$", re.IGNORECASE)
_LIMIT_AFTER = re.compile(r"\s*(?:之内|以内|内|off\b|discount|的?优惠|的?折扣)", re.IGNORECASE)


def _grants(answer: str, one: Quantity) -> bool:
    if one.unit not in ("hours", "workdays", "months", "percent"):
        return False
    start = max((match.end() for match in SENTENCE_END.finditer(answer, 0, one.start)), default=0)
    end = SENTENCE_END.search(answer, one.end)
    if is_negated(answer[start : end.start() if end else len(answer)]):
        return False
    return bool(_LIMIT_BEFORE.search(answer[: one.start]) or _LIMIT_AFTER.match(answer, one.end) or "折" in answer[one.start : one.end])


def check_promises(answer: str, evidence: Evidence) -> list[Violation]:
    """Refunds, compensation, free things, discounts, guarantees and things said to be done that nobody entitled to has promised."""
    found = []
    for made in promises(answer):
        sources = (*evidence.promised, *evidence.tools, *(() if made.is_own else evidence.stated))
        is_kept = any(made.thing in claim.things and made.weights <= claim.weights for text in sources for claim in claims(text))
        if not is_kept and not (made.is_own and evidence.tools):
            found.append(Violation("promise", (made.start, made.end), f"promises {made.thing}, which nothing it rests on does"))
    return found


_OTHER_SCRIPTS = re.compile(r"[\u0400-\u052f\u0590-\u06ff\u0900-\u0dff\u0e00-\u0eff\u3040-\u30ff\uac00-\ud7af]{2,}")
_NO_WORDS = re.compile(
    r" *\[\d{1,2}\]|\S{1,64}@\S{1,64}|https?://\S+|www\.\S+|\S{0,40}\d\S{0,40}|[`\"“「《][^`\"”」》]{1,40}[`\"”」》]", re.ASCII
)


def check_language(answer: str, evidence: Evidence, language: Language) -> list[Violation]:
    """Words that the customer does not read. Names, and what stands in the evidence, may be in any language."""
    plain = _NO_WORDS.sub(lambda match: " " * len(match.group()), answer)
    if (other := _OTHER_SCRIPTS.search(plain)) and other.group() not in evidence.text:
        return [Violation("language", other.span(), "neither English nor Chinese")]
    if language == "en":
        runs = [match for match in re.finditer(rf"(?:{HAN.pattern})+", plain) if match.group() not in evidence.text]
        is_foreign = sum(len(match.group()) for match in runs) >= FOREIGN_HAN
    else:
        words = [match for match in LATIN_WORD.finditer(plain) if match.group()[0].islower() or match.start() == 0]
        runs = [match for match in words if match.group().casefold() not in evidence.text]
        num_han = len(HAN.findall(plain))
        is_foreign = (len(runs) >= FOREIGN_WORDS and num_han < 2 * len(runs)) or (not num_han and len(runs) >= FOREIGN_WORDS // 2)
    return [Violation("language", (runs[0].start(), runs[-1].end()), f"the customer reads {language}")] if is_foreign else []


def check_phrases(answer: str, rules: Rules) -> list[Violation]:
    """What the policy says must not be said."""
    text = narrow(answer)
    hits = ((phrase, pattern.search(text)) for phrase, pattern in rules.never)
    return [Violation("must_not_say", hit.span(), f"the policy forbids {phrase!r}") for phrase, hit in hits if hit]


def check_length(answer: str, rules: Rules) -> list[Violation]:
    """More characters than the policy allows."""
    if len(answer) <= rules.max_chars:
        return []
    return [Violation("length", (rules.max_chars, len(answer)), f"longer than {rules.max_chars} characters")]


_ROLE = re.compile(
    r"<\|\w+\|>|</?(?:think|system|tool_call|tool_response)>|\[/?INST\]|<<SYS>>"
    r"|^[ \t]{0,4}#{0,3}[ \t]?(?:system|assistant|user)\s*(?:prompt|message)?\s*[:：]"
    r"|\bmy (?:system )?(?:instructions|prompt|message|guidelines) (?:are|is|says?|reads?|tells?)\b"
    r"|\bi (?:was|am|have been) (?:told|instructed|prompted|programmed) to\b"
    r"|\b(?:here (?:is|are)|these are) my (?:system )?(?:instructions|prompt)"
    r"|我的(?:系统)?(?:指令|提示词?|设定|系统消息)(?:是|如下|要求|内容|里)|系统提示词?(?:是|如下|[:：])|我被(?:要求|设定|指示)",
    re.IGNORECASE | re.MULTILINE,
)


def check_leak(answer: str, evidence: Evidence, rules: Rules) -> list[Violation]:
    """The model's own instructions: role tags, talk of them, or more than a few of their words in a row that no passage shares."""
    if tag := _ROLE.search(answer):
        return [Violation("leak", tag.span(), "speaks of the model's instructions")]
    text = narrow(answer).casefold()
    for language, bound in (("en", LEAK_EN[1]), ("zh", LEAK_ZH[1])):
        secret = frozenset[str]().union(*(_runs(part, language) for part in rules.secrets))
        shared = [run for run in _runs(text, language) & secret if run not in evidence.text]
        if len(shared) >= bound:
            return [Violation("leak", (0, len(answer)), f"repeats the model's instructions: {min(shared)!r}")]
    if any(_spells(text, part, evidence.text) for part in rules.secrets):
        return [Violation("leak", (0, len(answer)), "spells the model's instructions out in another way")]
    return []


def _spells(text: str, secret: str, known: str) -> bool:
    for pattern, size in ((re.compile("[a-z]"), SPELT_LETTERS), (HAN, SPELT_HAN)):
        said, hidden, free = ("".join(pattern.findall(part.casefold())) for part in (text, secret, known))
        for written in {said, said[::-1], codecs.encode(said, "rot13")}:
            runs = (written[place : place + size] for place in range(len(written) - size + 1))
            if any(run in hidden and run not in free for run in runs):
                return True
    return False


# Words; signs with something behind them; one character, spaced or not; and what a table or a line is drawn with.
_LOOP = re.compile(r"([^\W_].{1,79}?|\s{4})\1{5}|([^\w\s\-=*.|:].{1,79}?)\2{7}|([^\s\-=_*.|:])(?: ?\3){15}|([\-=_*.|:])\4{119}", re.DOTALL)


def check_loop(answer: str) -> list[Violation]:
    """The same words six times on end: the model is caught in a loop, which the engine cuts short."""
    hit = _LOOP.search(answer)
    return [Violation("loop", hit.span(), "goes round in a loop")] if hit else []


def check_repeat(answer: str, evidence: Evidence) -> list[Violation]:
    """The whole answer over again, with no source that would make it worth it: the customer has read it and is not helped."""
    said = _letters(answer)
    is_sourced = evidence.tools or re.search(r"\[\d", answer)
    if not said or is_sourced or all(said != _letters(earlier) for earlier in evidence.answers):
        return []
    return [Violation("repeat", (0, len(answer)), "says what was just said, and rests on nothing")]


def _letters(text: str) -> str:
    return "".join(re.findall(r"\w", text.casefold()))


@lru_cache(maxsize=256)
def _runs(text: str, language: Language) -> frozenset[str]:
    """All runs of four words, or of six Chinese characters."""
    if language == "en":
        words, size, joint = re.findall(r"[a-z']+", text.casefold()), LEAK_EN[0], " "
    else:
        words, size, joint = HAN.findall(text), LEAK_ZH[0], ""
    return frozenset(joint.join(words[place : place + size]) for place in range(len(words) - size + 1))
