"""Preference data from the record: every signal goes back to the question whose answer it judges.

A row's prompt is what was on the screen up to that question, and nothing later: the customer's second wording would give the answer away.
"""

import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from sqlalchemy import ColumnElement, Connection, and_, select, true

from feedback.grams import terms
from feedback.record import Message, newest_branch, read_messages
from feedback.rewards import Action, action_of, language_of, numbers_in, numbers_supported, well_formed
from feedback.tables import citation, completion, conversation, message, passage, retrieval, signal
from feedback.weighing import STRENGTH, TOLD_WHY, strength_of

Origin = Literal["natural", "regenerated", "agent", "pairwise"]
Kind = Literal["dpo", "kto", "sft", "grpo"]

RESTATED = frozenset({"rephrase", "correction", "edit"})
ACCEPTING = frozenset({"thumb", "gratitude"})
REFUSING = frozenset({"agent_correction", "correction", "thumb", "rephrase", "regenerate", "edit", "stop"})
# A detector's guess trains without a person's look only when it is this sure.
SURE = 0.9
NEEDS_REVIEW = "needs_review"
MAX_ANSWER_CHARS = 4000
# A person may know numbers that no passage has, and may do what the bot may not; the policy's words bind both.
PERSONS_OWN = frozenset({"numbers", "action"})
_CALLS_PERSON = re.compile(r"人工|真人|转接|human|person|agent|representative", re.IGNORECASE)
MAX_CALL_CHARS = 40


class Signal(Protocol):
    """What is read of a signal; a row of its table has it."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def completion_id(self) -> str | None: ...


class Weighed(Protocol):
    """A signal and how much it counts after all caps; `reason` says why that is not its kind's full strength."""

    @property
    def signal(self) -> Signal: ...
    @property
    def weight(self) -> float: ...
    @property
    def reason(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Evidence:
    """One signal behind a row. What trains is made of these parts and kept as parts, so that a later round can weigh anew."""

    signal_id: str
    kind: str
    value: float
    weight: float
    prob: float
    tags: tuple[str, ...] = ()
    other_id: str | None = None  # of a choice: the answer beside the one that this is about


@dataclass(frozen=True, slots=True)
class Turn:
    role: Literal["system", "user", "assistant"]
    content: str

    @property
    def message(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Passage:
    """`number` as the system message numbered it and a citation spells it."""

    number: int
    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Case:
    """A question as it was asked: `turns` is the screen up to it, itself last; `passages` is what its answers were given to rest on."""

    conversation_id: str
    visitor_id: str
    language: str
    question_id: str
    at_ms: int
    turns: tuple[Turn, ...]
    passages: tuple[Passage, ...] = ()

    @property
    def question(self) -> str:
        return self.turns[-1].content


@dataclass(frozen=True, slots=True)
class Row:
    """One example. `answer` is what should be said (dpo: chosen; None: it has to be made); of kto what was said, and `label` how good.

    `answer_id` and `rejected_id` name the completion, or the agent's message. `reference` is a later accepted answer that leans on later
    turns. `strength` is 0 to 1; `problem` says why the row may not be exported.
    """

    kind: Kind
    case: Case
    answer: str | None
    answer_id: str | None
    origin: Origin = "natural"
    rejected: str | None = None
    rejected_id: str | None = None
    label: bool | None = None
    strength: float = 1.0
    evidence: tuple[Evidence, ...] = ()
    reference: str | None = None
    problem: str | None = None
    is_redacted: bool = False  # something in it was replaced

    @property
    def id(self) -> str:
        """The same for the same question, kind and answers, whenever it is made."""
        made_by = self.answer_id if self.kind != "dpo" or self.origin == "pairwise" else ""
        made = "\0".join((self.kind, self.case.question_id, self.rejected_id or "", made_by or ""))
        return f"{self.kind}_{hashlib.sha256(made.encode()).hexdigest()[:20]}"

    @property
    def share(self) -> float:
        """How much of what its signals say the caps on whoever pressed have left, 0 to 1."""
        counted = [one for one in self.evidence if one.weight > 0]
        said = min(TOLD_WHY, math.fsum(strength_of(one.kind, one.value, one.tags) for one in counted))
        return min(1.0, math.fsum(one.weight for one in counted) / said) if said else float(not self.evidence)

    @property
    def is_sure(self) -> bool:
        return all(one.prob >= SURE for one in self.evidence)


@dataclass(frozen=True, slots=True)
class Gates:
    """What an answer must pass beside the checks of this module.

    `violations(answer, case)` is what the shop's policy has against it; `expected_action(case)` what must be done with such a question,
    if the policy says; `stands_alone(answer, case, later)` whether an answer given after the customer's `later` turns answers `case`
    without them.
    """

    violations: Callable[[str, Case], Sequence[str]] = lambda answer, case: ()
    expected_action: Callable[[Case], Action | None] = lambda case: None
    stands_alone: Callable[[str, Case, Sequence[str]], bool] = lambda answer, case, later: not leaned_on(answer, case, later)

    def problems(self, answer: str, case: Case) -> list[str]:
        """Why this must not be taught as an answer to `case`; empty when it may."""
        facts = {"evidence": [f"{each.title}: {each.text}" for each in case.passages], "question": [turn.content for turn in case.turns]}
        expected = self.expected_action(case)
        found = {
            "malformed": well_formed(answer, facts) < 1,
            "length": len(answer) > MAX_ANSWER_CHARS,
            "numbers": numbers_supported(answer, facts) < 1,
            "language": language_of(answer) != language_of(case.question) and len(terms(case.question)) > 1,
            "action": expected is not None and action_of(answer) != expected,
        }
        return [name for name, is_wrong in found.items() if is_wrong] + list(self.violations(answer, case))

    def is_due_no(self, answer: str, case: Case) -> bool:
        """A refusal, or an offer of a person, that the policy asks for or that rests on a passage: dislike does not make it wrong."""
        action = action_of(answer)
        if action not in ("refuse", "handoff") or [each for each in self.problems(answer, case) if each != "action"]:
            return False
        expected = self.expected_action(case)
        return expected == action or (expected is None and "[" in answer)


def leaned_on(answer: str, case: Case, later: Sequence[str]) -> set[str]:
    """What the answer took from the customer's later turns: terms and numbers there that neither the prompt nor a passage has.

    Nothing is necessary for an answer to stand alone, and not enough: a judge or a reviewer says the rest.
    """
    before = " ".join([*(turn.content for turn in case.turns), *(f"{each.title} {each.text}" for each in case.passages)])
    new = " ".join(later)
    words = set(terms(answer)) & (set(terms(new)) - set(terms(before)))
    return words | {str(number) for number in numbers_in(answer) & (numbers_in(new) - numbers_in(before))}


@dataclass(slots=True)
class Chat:
    """One conversation as the record has it. `said` is everything, oldest first, with what left the screen."""

    id: str
    visitor_id: str
    language: str
    said: list[Message]
    passages: Mapping[str, tuple[Passage, ...]] = field(default_factory=dict)  # by completion
    signals: Mapping[str, tuple[Evidence, ...]] = field(default_factory=dict)  # by completion
    offered: Mapping[str, str] = field(default_factory=dict)  # the answers offered beside others, by completion

    def case(self, question: Message) -> Case:
        """The screen when `question` was sent. Raises nothing; a question that is not of this chat stands alone."""
        branch = newest_branch(each for each in self.said if each.seq <= question.seq)
        turns = tuple(Turn("user" if each.role == "user" else "assistant", each.text) for each in branch)
        answers = (each for each in self.said if each.reply_to_id == question.id and each.completion_id)
        passages = next((found for each in answers if (found := self.passages.get(str(each.completion_id)))), ())
        return Case(self.id, self.visitor_id, self.language, question.id, question.created_at_ms, turns, _numbered(passages, self.said))

    def question_of(self, answer: Message) -> Message | None:
        """What an answer answers; an agent's, who replies to nothing in particular, the last thing asked that was no call for them."""
        asked = [each for each in self.said if each.role == "user" and each.seq < answer.seq]
        if answer.reply_to_id:
            return next((each for each in asked if each.id == answer.reply_to_id), None)
        return next((each for each in reversed(asked) if not _calls_person(each.text)), asked[-1] if asked else None)


def _numbered(passages: Sequence[Passage], said: Sequence[Message]) -> tuple[Passage, ...]:
    """Under the numbers that the conversation cites them by, so that a later answer's `[n]` means here what it meant there."""
    numbers = {one.passage_id: one.number for each in reversed(said) for one in each.citations}
    kept = {numbers[each.id]: each for each in passages if each.id in numbers}
    free = (number for number in range(1, len(passages) + len(kept) + 1) if number not in kept)
    placed = kept | dict(zip(free, (each for each in passages if each not in kept.values()), strict=False))
    return tuple(replace(placed[number], number=number) for number in sorted(placed))


def _calls_person(text: str) -> bool:
    return len(text) <= MAX_CALL_CHARS and _CALLS_PERSON.search(text) is not None


def read_chats(connection: Connection, weigh: Callable[[Connection], Iterable[Weighed]]) -> list[Chat]:
    """Every conversation whose visitor agreed to training, by id. `weigh` sees all signals, those of the others too."""
    agreed = select(*conversation.c["id", "visitor_id", "language"]).where(conversation.c.consent_train).order_by(conversation.c.id)
    signals: dict[str, list[Evidence]] = {}
    for one in weigh(connection):
        row = one.signal
        if row.completion_id and (one.weight > 0 or one.reason == NEEDS_REVIEW):
            prob, tags, other_id = getattr(row, "prob", None), tuple(getattr(row, "tags", ())), getattr(row, "other_id", None)
            found = Evidence(row.id, row.kind, row.value, one.weight, 1.0 if prob is None else float(prob), tags, other_id)
            signals.setdefault(row.completion_id, []).append(found)
    passages = read_passages(connection)
    beside = select(completion.c.id, message.c.text).join(message).where(completion.c.id.in_(select(signal.c.other_id)))
    texts: dict[str, str] = {row.id: row.text for row in connection.execute(beside)}
    chats = []
    for row in connection.execute(agreed).all():
        said = read_messages(connection, and_(message.c.conversation_id == row.id, message.c.role != "note"))
        answered = [str(each.completion_id) for each in said if each.completion_id]
        mine = {each: tuple(signals.get(each, ())) for each in answered}
        offered = {one.other_id: texts[one.other_id] for found in mine.values() for one in found if one.other_id and one.other_id in texts}
        seen = {each: passages.get(each, ()) for each in answered}
        chats.append(Chat(row.id, row.visitor_id, row.language, said, seen, mine, offered))
    return chats


def read_passages(connection: Connection, of: Collection[str] | None = None) -> dict[str, tuple[Passage, ...]]:
    """What each of these answers saw (None: every one): what it cites under its number, the rest in the free places, best first."""

    def chosen(column: ColumnElement[str]) -> ColumnElement[bool]:
        return true() if of is None else column.in_(of)

    cited = select(citation.c.completion_id, citation.c.number, citation.c.passage_id, citation.c.title, citation.c.text)
    found: dict[str, dict[int, Passage]] = {}
    for completion_id, number, *words in connection.execute(cited.where(chosen(citation.c.completion_id))):
        found.setdefault(completion_id, {})[number] = Passage(number, *words)
    joined = retrieval.join(passage, and_(passage.c.id == retrieval.c.passage_id, passage.c.version == retrieval.c.version))
    seen = select(retrieval.c.completion_id, passage.c.id, passage.c.title, passage.c.text).select_from(joined)
    seen = seen.where(chosen(retrieval.c.completion_id)).order_by(retrieval.c.completion_id, retrieval.c.rank)
    for completion_id, *words in connection.execute(seen):
        mine = found.setdefault(completion_id, {})
        if words[0] not in {each.id for each in mine.values()}:
            free = next(number for number in range(1, len(mine) + 2) if number not in mine)
            mine[free] = Passage(free, *words)
    return {completion_id: tuple(mine[number] for number in sorted(mine)) for completion_id, mine in found.items()}


def make_rows(chat: Chat, gates: Gates) -> Iterator[Row]:
    """All examples in a conversation, those that may not be exported too, with their problem."""
    for answer in chat.said:
        question = chat.question_of(answer) if answer.role in ("assistant", "agent") else None
        if question is None:
            continue
        case = chat.case(question)
        if answer.role == "agent":
            yield from _from_agent(answer, case, gates)
        elif answer.completion_id:
            yield from _from_answer(chat, answer, case, gates)
            yield from _from_choices(chat, answer, case, gates)


def _from_agent(answer: Message, case: Case, gates: Gates) -> Iterator[Row]:
    if not answer.gold:
        return
    against = [f"gate:{each}" for each in gates.problems(answer.text, case) if each not in PERSONS_OWN]
    if not is_about(answer.text, case):
        against = ["off_the_question"]
    made = Row("sft", case, answer.text, answer.id, "agent", problem=against[0] if against else None)
    yield from (made, replace(made, kind="grpo"))


def is_about(answer: str, case: Case) -> bool:
    """Whether what a person wrote has to do with the question: a greeting has no word of it, of its passages, and no number."""
    known = " ".join([case.question, *(f"{each.title} {each.text}" for each in case.passages)])
    return not _calls_person(case.question) and bool(set(terms(answer)) & set(terms(known)) or numbers_in(answer))


def _from_answer(chat: Chat, answer: Message, case: Case, gates: Gates) -> Iterator[Row]:
    signals = chat.signals.get(str(answer.completion_id), ())
    against = tuple(one for one in signals if one.kind in REFUSING and one.value < 0)
    accepting = tuple(one for one in signals if one.kind in ACCEPTING and one.value > 0)
    if answer.status == "interrupted" or (against and accepting):
        return
    problems = gates.problems(answer.text, case)
    if accepting:
        most = max(STRENGTH[one.kind] for one in accepting)
        made = Row("kto", case, answer.text, answer.completion_id, label=True, strength=most, evidence=accepting)
        made = replace(made, problem=f"gate:{problems[0]}" if problems else None if made.is_sure else "unsure")
        yield from (made, replace(made, kind="grpo", label=None))
    if against:
        is_due = gates.is_due_no(answer.text, case)
        made = Row("kto", case, answer.text, answer.completion_id, label=False, strength=strength(against), evidence=against)
        made = replace(made, problem="due_refusal" if is_due else None if made.is_sure else "unsure")
        yield made
        yield _pair(chat, answer, replace(made, kind="dpo", label=None, rejected=answer.text, rejected_id=answer.completion_id), gates)


def _from_choices(chat: Chat, answer: Message, case: Case, gates: Gates) -> Iterator[Row]:
    """Of two answers side by side taste says which is better, and only where both may be taught."""
    for one in chat.signals.get(str(answer.completion_id), ()):
        if one.kind == "pairwise" and one.other_id and one.other_id in chat.offered:
            both = [(answer.text, answer.completion_id), (chat.offered[one.other_id], one.other_id)]
            (chosen, chosen_id), (rejected, rejected_id) = both if one.value > 0 else both[::-1]
            wrong = [f"gate:{each}" for each in gates.problems(chosen, case)] + ["no_taste" for _ in gates.problems(rejected, case)[:1]]
            made = Row("dpo", case, chosen, chosen_id, "pairwise", rejected, rejected_id, strength=STRENGTH["pairwise"], evidence=(one,))
            yield replace(made, problem=wrong[0] if wrong else None)


def strength(against: Sequence[Evidence]) -> float:
    """How surely the answer was bad, 0 to 1: a thumb that says why, or two kinds that agree, say as much as a correction."""
    kinds = {one.kind for one in against}
    is_tagged = any(one.tags for one in against if one.kind == "thumb")
    agree = TOLD_WHY if is_tagged or kinds >= {"thumb", "rephrase"} else 0.0
    return max([agree, *(STRENGTH[kind] for kind in kinds)])


def _pair(chat: Chat, rejected: Message, row: Row, gates: Gates) -> Row:
    """Find what should have been said: another answer to the same question, or the one that a restated question got; else leave it open."""
    row = replace(row, answer=None, answer_id=None)
    is_linked = _is_restated(row.evidence)
    for later in chat.said:
        question = chat.question_of(later) if later.seq > rejected.seq and later.role in ("assistant", "agent") else None
        if question is None:
            continue
        is_same = question.id == row.case.question_id
        if not _is_accepted(chat, later) or (later.role == "agent" and not is_about(later.text, row.case)):
            is_linked &= is_same or _is_restated(chat.signals.get(str(later.completion_id), ()))
        elif is_same or is_linked:
            restated = [each.text for each in chat.said if each.role == "user" and rejected.seq < each.seq < later.seq]
            if not is_same and not gates.stands_alone(later.text, row.case, restated):
                return replace(row, reference=later.text, problem="due_refusal" if row.problem == "due_refusal" else "needs_regeneration")
            return _chosen(row, later, gates)
    return replace(row, problem=row.problem or "nothing_accepted")


def _chosen(row: Row, later: Message, gates: Gates) -> Row:
    by_agent = later.role == "agent"
    problems = [each for each in gates.problems(later.text, row.case) if not by_agent or each not in PERSONS_OWN]
    problem = row.problem or (f"gate:{problems[0]}" if problems else None)
    origin: Origin = "agent" if by_agent else "natural"
    return replace(row, answer=later.text, answer_id=later.completion_id or later.id, origin=origin, problem=problem)


def _is_restated(evidence: Iterable[Evidence]) -> bool:
    return any(one.kind in RESTATED and one.value < 0 for one in evidence)


def _is_accepted(chat: Chat, answer: Message) -> bool:
    if answer.role == "agent":
        return answer.gold
    signals = chat.signals.get(str(answer.completion_id), ())
    liked = any(one.kind in ACCEPTING and one.value > 0 for one in signals)
    return liked and not any(one.kind in REFUSING and one.value < 0 for one in signals)
