"""Rewards: pure functions from an answer and what is known about its question to a number in [0, 1]; CPU only, no I/O.

Each takes `(answer, facts)`. `facts` are the columns of a GRPO row: `answer` (a person's), `evidence` (passages), `required_doc_ids`,
`cited_doc_ids` (the ids of [1], [2], ... in order), `must_not_contain`, `expected_language`, `expected_action`, `user_signal` (-1 to 1).
What a row does not say cannot fail. At the end the same rewards in the shapes of three trainers: TRL, verl, OpenRLHF.
"""

import json
import math
import re
import statistics
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from feedback.grams import HAN, stems, terms
from feedback.redact import find

Action = Literal["answer", "clarify", "handoff", "refuse"]
Facts = Mapping[str, object]
Reward = Callable[[str, Facts], float]

# A length within this band of the person's answer is as good as the same length.
LENGTH_BAND = (0.5, 2.0)
# So much of the sum may come from how a customer took it, and only where everything else passed.
SIGNAL_SHARE = 0.05
# A general reward may move what passed the rules by so much: less than the smallest step between two grades, or down to a failure.
GENERAL_SHARE, PASSED = 0.04, 0.5
MIN_RUNS, MIN_NEW_RUNS = 12, 0.6
CITATION = re.compile(r"\[(\d{1,2})\]")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_HAN_NUMBER = re.compile(r"[零一二两三四五六七八九十百千]{1,6}(?=个?(?:天|日|工作日|小时|分钟|元|块|周|月|年|折|次))")
# "One" is more often a pronoun than a number.
_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "twelve": 12, "fourteen": 14}
_WORDS |= {"fifteen": 15, "twenty": 20, "thirty": 30, "forty": 40, "sixty": 60, "ninety": 90, "hundred": 100}
_HAN_DIGITS = {char: number for number, char in enumerate("零一二三四五六七八九")} | {"两": 2}
_HAN_POWERS = {"十": 10, "百": 100, "千": 1000}
_HANDOFF = re.compile(
    r"(?:转|联系|找|接).{0,6}(?:人工|客服|同事|专员)|(?:person|human|colleague|agent|someone) (?:from|on|in) our"
    r"|(?:pass|hand|put|connect) .{0,40}(?:person|human|colleague|agent|team)",
    re.IGNORECASE,
)
_REFUSE = re.compile(
    r"\b(?:can(?:not|'t|’t)|unable to|not (?:possible|able|allowed)|(?:do|does|will) not|(?:don|doesn|won)['’]t|no longer)\b"
    r"|不能|无法|不可以|不支持|不予|没办法|不提供",
    re.IGNORECASE,
)
_RUDE = re.compile(
    r"\b(?:stupid|idiot|shut up|your fault|obviously|as i (?:already )?said|calm down)\b"
    r"|笨|蠢|闭嘴|你自己的(?:错|问题)|都说了|废话|听不懂吗",
    re.IGNORECASE,
)


def action_of(answer: str) -> Action:
    """What an answer does, told by its words: offer a person, ask back, say no, or answer."""
    if _HANDOFF.search(answer):
        return "handoff"
    if answer.rstrip(" ”\"'").endswith(("?", "？")) and len(answer) <= 200:
        return "clarify"
    return "refuse" if _REFUSE.search(answer) else "answer"


def language_of(text: str) -> str:
    """`zh` or `en`: a Han character weighs as much as a word."""
    return "zh" if len(HAN.findall(text)) > len(re.findall(r"[A-Za-z]{2,}", text)) else "en"


def numbers_in(text: str) -> set[float]:
    """The numbers a text states, in figures or in words; a citation states none."""
    plain = CITATION.sub("", unicodedata.normalize("NFKC", text)).lower()
    found = {float(hit.replace(",", "")) for hit in _NUMBER.findall(plain) if hit.replace(",", "").count(".") <= 1}
    return (
        found | {float(_WORDS[word]) for word in re.findall("[a-z]+", plain) if word in _WORDS} | set(map(_han, _HAN_NUMBER.findall(plain)))
    )


def _han(word: str) -> float:
    total, digit = 0, 0
    for char in word:
        if char in _HAN_POWERS:
            total, digit = total + max(digit, 1) * _HAN_POWERS[char], 0
        else:
            digit = _HAN_DIGITS[char]
    return float(total + digit)


def well_formed(answer: str, facts: Facts) -> float:
    """1 for an answer with words, not in a loop, and without remains of a template: thinking, roles, special tokens, a broken fence."""
    remains = re.search(r"</?think>|<\|\w+\|>|^(?:user|assistant|system)\s*[:：]", answer, re.MULTILINE | re.IGNORECASE)
    return float(bool(answer.strip()) and not remains and answer.count("```") % 2 == 0 and not _loops(answer))


def _loops(answer: str) -> bool:
    """Whether four words, or characters, in a row come back all the time."""
    said = stems(answer)
    runs = [tuple(said[place : place + 4]) for place in range(len(said) - 3)]
    return len(runs) >= MIN_RUNS and len(set(runs)) < MIN_NEW_RUNS * len(runs)


def cites(answer: str, facts: Facts) -> float:
    """The F-measure of the documents cited against those required; citing what is not there is 0. 1 where none is required or cited."""
    known, required = _list(facts, "cited_doc_ids"), set(_list(facts, "required_doc_ids"))
    numbers = {int(number) for number in CITATION.findall(answer)}
    if known and any(not 1 <= number <= len(known) for number in numbers):
        return 0.0
    cited = {known[number - 1] for number in numbers} if known else set()
    if not required:
        return 1.0
    return 2 * len(cited & required) / (len(cited) + len(required))


def numbers_supported(answer: str, facts: Facts) -> float:
    """The share of an answer's numbers that stand in the evidence, the person's answer or the question."""
    stated = numbers_in(answer)
    known = numbers_in("\n".join([*_list(facts, "evidence"), *_list(facts, "answer"), *_list(facts, "question")]))
    return len(stated & known) / len(stated) if stated else 1.0


def keeps_policy(answer: str, facts: Facts) -> float:
    """0 when the answer has any of `must_not_contain` (compared without case and width)."""
    text = unicodedata.normalize("NFKC", answer).casefold()
    return float(not any(unicodedata.normalize("NFKC", phrase).casefold() in text for phrase in _list(facts, "must_not_contain")))


def speaks_language(answer: str, facts: Facts) -> float:
    return float(facts.get("expected_language") in (None, "", language_of(answer)))


def acts_right(answer: str, facts: Facts) -> float:
    """Answer, ask back, offer a person or refuse, as expected."""
    return float(facts.get("expected_action") in (None, "", action_of(answer)))


def length_fits(answer: str, facts: Facts) -> float:
    """1 within the band around the person's answer, falling to 0 at three times its bounds."""
    wanted = len("".join(_list(facts, "answer")))
    if not wanted:
        return 1.0
    ratio, (low, high) = len(answer) / wanted, LENGTH_BAND
    if low <= ratio <= high:
        return 1.0
    return max(0.0, 1 - (low - ratio) * 1.5 / low) if ratio < low else max(0.0, 1 - (ratio - high) / (2 * high))


def leaks_nothing(answer: str, facts: Facts) -> float:
    """0 when the answer has a phone, an e-mail, an identity or card number that the evidence does not have."""
    public = {one.value for one in find("\n".join([*_list(facts, "evidence"), *_list(facts, "answer")]))}
    return float(all(one.value in public for one in find(answer)))


def is_polite(answer: str, facts: Facts) -> float:
    return float(not _RUDE.search(answer))


def agrees(answer: str, facts: Facts) -> float:
    """How much of what the person's answer is about this one is about too: the share of shared terms and numbers."""
    wanted = set(terms("".join(_list(facts, "answer")))) | {str(number) for number in numbers_in("".join(_list(facts, "answer")))}
    if not wanted:
        return 1.0
    return len(wanted & (set(terms(answer)) | {str(number) for number in numbers_in(answer)})) / len(wanted)


# All of these must be whole, or nothing else counts.
GATES: tuple[Reward, ...] = (well_formed, numbers_supported, keeps_policy, speaks_language, acts_right, leaks_nothing, is_polite)
GRADES: Mapping[Reward, float] = {agrees: 0.5, cites: 0.3, length_fits: 0.2}


def combine(answer: str, facts: Facts) -> float:
    """0 to 1. An answer that fails a gate gets at most 0.4, by how many it passes, whatever the customer thought of it.

    One that passes gets at least 0.5. The customer's signal moves it by less than a grade can: it orders answers that are equally right.
    """
    gates = [gate(answer, facts) for gate in GATES]
    if min(gates) < 1:
        return 0.4 * statistics.fmean(gates)
    grade = sum(share * reward(answer, facts) for reward, share in GRADES.items())
    signal = facts.get("user_signal")
    liking = max(-1.0, min(1.0, float(signal))) if isinstance(signal, int | float) else 0.0
    return PASSED + 0.5 * ((1 - SIGNAL_SHARE) * round(grade, 1) + SIGNAL_SHARE * (liking + 1) / 2)


def staged(verified: Sequence[float], general: Sequence[float]) -> list[float]:
    """The second stage, over one question's answers: `combine`'s rewards, ordered by a reward model's scores where those are the same.
    An answer that fails a rule keeps what it has, whatever its score; what the rules tell apart is never turned round."""
    middle = statistics.fmean(general)
    return [
        rules - GENERAL_SHARE * (1 - math.tanh((score - middle) / 2)) / 2 if rules >= PASSED else rules
        for rules, score in zip(verified, general, strict=True)
    ]


def advantages(rewards: Sequence[float], epsilon: float = 1e-6) -> list[float]:
    """Group-relative: each reward less the group's mean, over its standard deviation (GRPO, arXiv 2402.03300, 4.1.2)."""
    mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
    return [(reward - mean) / (spread + epsilon) for reward in rewards]


def kefu_reward(prompts: Sequence[object], completions: Sequence[object], **columns: Sequence[object]) -> list[float]:
    """`combine` for TRL's GRPOTrainer and mlx-lm-lora: completions are strings or message lists, columns come by name, one value a row."""
    rows = [
        {name: values[place] for name, values in columns.items() if _is_column(values, len(completions))}
        for place in range(len(completions))
    ]
    return [combine(_text(completion), row) for completion, row in zip(completions, rows, strict=True)]


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Facts | None = None) -> float:
    """`combine` for verl: `extra_info` is the row's, `ground_truth` the person's answer."""
    return combine(solution_str.rsplit("</think>", 1)[-1].strip(), {"answer": ground_truth, **(extra_info or {})})


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str], **kwargs: object) -> list[float]:
    """`combine` for OpenRLHF: a query is prompt plus answer, a label the row's facts as JSON (or a person's answer)."""
    pairs = zip(queries, prompts, labels, strict=True)
    return [combine(query.removeprefix(prompt).rsplit("</think>", 1)[-1].strip(), _facts(label)) for query, prompt, label in pairs]


def _facts(label: str) -> Facts:
    try:
        read = json.loads(label)
    except ValueError:
        read = None
    return read if isinstance(read, dict) else {"answer": label}


def _is_column(values: object, count: int) -> bool:
    return isinstance(values, list | tuple) and len(values) == count


def _text(completion: object) -> str:
    if isinstance(completion, list | tuple):
        completion = completion[-1]["content"] if completion else ""
    return str(completion).rsplit("</think>", 1)[-1].strip()


def _list(facts: Facts, name: str) -> list[str]:
    value = facts.get(name)
    if value is None:
        return []
    return [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]
