"""From rows to examples that may leave: redacted, deduplicated, capped, split; and why each of the others may not."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median

from sqlalchemy import Connection, select

from feedback.conduct import HOSTILE, conduct
from feedback.intents import intents, most_of_one
from feedback.pairs import Chat, Gates, Row, Turn, Weighed, make_rows, read_chats
from feedback.redact import Redactor, find
from feedback.review import NUM_RATERS, Verdict, read_verdicts, regenerated
from feedback.signals import weighed
from feedback.similar import Groups, near_duplicates, normalised
from feedback.tables import completion, pair, signal, tool_call
from feedback.weighing import MAX_VISITOR_DAY, TOLD_WHY

VALID_SHARE = 0.1
MAX_COPIES = 3
MAX_ROWS_A_DAY, MAX_VISITOR_SHARE = 3, 0.02
DAY_MS = 24 * 3_600_000
KINDS = ("dpo", "kto", "sft", "grpo")
LENGTH_RATIO = (0.8, 1.25)
# Of fewer pairs the mean says nothing, and they train nothing.
MIN_BALANCED = 20
# A row counts as one however little it weighs. Whoever judges three answers a day is left so much of each; who presses on more has less.
MIN_SHARE = MAX_VISITOR_DAY / (MAX_ROWS_A_DAY * TOLD_WHY) - 1e-6
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Rules:
    """How an export is made. `salt` decides the split and stays the same for good; `orders` and `public` are the redactor's."""

    salt: str
    orders: Sequence[re.Pattern[str]] = ()
    public: Collection[str] = ()
    is_redacted: bool = True


@dataclass(frozen=True, slots=True)
class Example:
    """A row that may leave. `copies` of it were found (at most 3 count); `split` is train or valid; `intent` what its question is about."""

    row: Row
    copies: int = 1
    split: str = "train"
    intent: str = ""

    @property
    def weight(self) -> float:
        """What a trainer that takes one number is told: the strength, or less where caps left less. Its parts are in the provenance."""
        sure = min((one.prob for one in self.row.evidence), default=1.0)
        return round(self.row.strength * self.row.share * sure * self.copies, 4)


@dataclass(slots=True)
class Selection:
    """The examples by kind, and how many rows were left out, by kind and reason."""

    examples: list[Example] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that an export is made from, as it was at one moment: how each answer was made, and the tool called for it, by completion."""

    rows: list[Row]
    verdicts: dict[str, list[Verdict]]
    made: dict[str, Mapping[str, object]]
    tools: Mapping[str, str] = field(default_factory=dict)


def read_snapshot(connection: Connection, gates: Gates, weigh: Callable[[Connection], Iterable[Weighed]] = weighed) -> Snapshot:
    """The rows of every conversation whose visitor agreed, with answers that were made for them before."""
    ledger = list(weigh(connection))
    held = {one.signal.completion_id for one in ledger if (one.reason or "").startswith("quarantine")} - {None}
    chats = read_chats(connection, lambda _: ledger)
    manners = _manners(connection, chats)
    rows = [
        row
        for chat in chats
        for row in _teaching(make_rows(chat, gates), manners[chat.id], not held.isdisjoint(each.completion_id for each in chat.said))
    ]
    remade = regenerated(connection)
    waiting = {row.id for row in rows if row.problem == "needs_regeneration"} & set(remade)
    rows = [replace(row, answer=remade[row.id], origin="regenerated", problem="unsure") if row.id in waiting else row for row in rows]
    wanted = {name for row in rows for name in (row.answer_id, row.rejected_id)}
    made: dict[str, Mapping[str, object]] = {
        row["id"]: dict(row) for row in connection.execute(select(completion)).mappings() if row["id"] in wanted
    }
    called = select(completion.c.id, tool_call.c.name).join(tool_call, tool_call.c.message_id == completion.c.message_id)
    tools = {row.id: row.name for row in connection.execute(called.order_by(tool_call.c.created_at_ms, tool_call.c.id))}
    return Snapshot(rows, _on_these(connection, rows), made, tools)


def _manners(connection: Connection, chats: Sequence[Chat]) -> dict[str, str | None]:
    """How the customer behaved in each conversation, in comments on votes too; who was hostile once is an `abuser` in all the others."""
    said = {chat.id: [each.text for each in chat.said if each.role == "user"] for chat in chats}
    for conversation_id, comment in connection.execute(select(signal.c.conversation_id, signal.c.comment)):
        if comment and conversation_id in said:
            said[conversation_id].append(comment)
    found = {chat.id: conduct(said[chat.id]) for chat in chats}
    hostile = {chat.visitor_id for chat in chats if found[chat.id] in HOSTILE}
    return {chat.id: "abuser" if chat.visitor_id in hostile and found[chat.id] not in HOSTILE else found[chat.id] for chat in chats}


def _teaching(rows: Iterable[Row], manner: str | None, is_held: bool) -> Iterator[Row]:
    """A conversation's rows, with a problem where they may teach nothing: a vote is in quarantine, or the customer is hostile.

    Who swears at a wrong answer is right about it all the same; what such people praise is left out.
    """
    for row in rows:
        is_praise = row.label is not False and row.answer is not None and row.origin in ("natural", "pairwise")
        reason = "quarantine" if is_held else manner if manner in HOSTILE or is_praise else None
        yield replace(row, problem=reason) if reason else row


def _on_these(connection: Connection, rows: Sequence[Row]) -> dict[str, list[Verdict]]:
    """The verdicts by pair. What was approved is the answer that was shown; another that has taken its place since is not."""
    shown = {row.id: row.chosen for row in connection.execute(select(pair.c.id, pair.c.chosen))}
    changed = {row.id for row in rows if row.answer != shown.get(row.id)}
    said = read_verdicts(connection)
    return {name: [one for one in each if one == "bad" or name not in changed] for name, each in said.items()}


def select_examples(snapshot: Snapshot, rules: Rules, step: Step = lambda name: None) -> Selection:
    """What may leave. The same snapshot and rules give the same examples in the same order."""
    selection = Selection()
    kept = sorted((_reviewed(row, snapshot.verdicts.get(row.id, [])) for row in snapshot.rows), key=lambda row: row.id)
    step("redacting")
    kept = _drop(selection, [(row, row.problem) for row in kept])
    # Where all customers share a network, all have little.
    least = MIN_SHARE * median([row.share for row in kept if row.evidence] or [1.0])
    kept = _drop(selection, [(row, "little weight" if row.share < least else None) for row in kept])
    kept = _drop(selection, [_redacted(row, redactor, rules) for row, redactor in _redactors(kept, rules)])
    step("looking for doubles")
    examples = _distinct(selection, kept)
    step("capping and splitting")
    examples = _capped(selection, examples)
    examples = _spread(selection, examples, snapshot.tools)
    examples = _balanced(selection, examples)
    selection.examples = _split(examples, rules.salt)
    return selection


def _drop(selection: Selection, judged: Iterable[tuple[Row, str | None]]) -> list[Row]:
    judged = list(judged)
    selection.dropped.update(f"{row.kind}: {problem}" for row, problem in judged if problem)
    return [row for row, problem in judged if not problem]


def _reviewed(row: Row, verdicts: Sequence[Verdict]) -> Row:
    """People decide what a detector was not sure of, what they approve counts in full whoever pressed, and they may refuse anything."""
    if "bad" in verdicts:
        return replace(row, problem="review")
    if row.problem not in (None, "unsure") or verdicts.count("good") < NUM_RATERS:
        return row
    certain = tuple(replace(one, prob=1.0, weight=max(one.weight, row.strength)) for one in row.evidence)
    return replace(row, problem=None, evidence=certain)


def _redactors(rows: Sequence[Row], rules: Rules) -> list[tuple[Row, Redactor]]:
    """Each row with its conversation's redactor; what stands in a passage is the shop's and stays."""
    redactors: dict[str, Redactor] = {}
    public: defaultdict[str, set[str]] = defaultdict(lambda: set(rules.public))
    for row in rows:
        public[row.case.conversation_id] |= {one.value for each in row.case.passages for one in find(each.text)}
    for row in rows:
        name = row.case.conversation_id
        redactors.setdefault(name, Redactor(rules.orders, public[name]))
    return [(row, redactors[row.case.conversation_id]) for row in sorted(rows, key=lambda row: (row.case.at_ms, row.id))]


def _redacted(row: Row, redactor: Redactor, rules: Rules) -> tuple[Row, str | None]:
    """A second look must find nothing, or the row stays here."""
    if not rules.is_redacted:
        return row, None
    turns = tuple(Turn(turn.role, redactor.redact(turn.content)) for turn in row.case.turns)
    answer, rejected = (text if text is None else redactor.redact(text) for text in (row.answer, row.rejected))
    is_redacted = (turns, answer, rejected) != (row.case.turns, row.answer, row.rejected)
    clean = replace(row, case=replace(row.case, turns=turns), answer=answer, rejected=rejected, reference=None, is_redacted=is_redacted)
    texts = [*(turn.content for turn in turns), answer or "", rejected or ""]
    return clean, "redaction" if any(redactor.find(text) for text in texts) else None


def _distinct(selection: Selection, rows: Sequence[Row]) -> list[Example]:
    """One of each; what differs by little from a kept example is left out."""
    same: defaultdict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.id):
        words = [*(turn.content for turn in row.case.turns), row.answer or "", row.rejected or "", str(row.label)]
        same[(row.kind, *(normalised(each) for each in words))].append(row)
    selection.dropped.update(f"{kind}: double" for (kind, *_), copies in same.items() for _ in copies[1:])
    examples = [Example(copies[0], min(len(copies), MAX_COPIES)) for copies in same.values()]
    near = near_duplicates([" ".join((one.row.kind, str(one.row.label), *_words(one.row))) for one in examples])
    doubles = {max(pair) for pair in near if examples[pair[0]].row.kind == examples[pair[1]].row.kind}
    selection.dropped.update(f"{examples[place].row.kind}: near double" for place in doubles)
    return [one for place, one in enumerate(examples) if place not in doubles]


def _words(row: Row) -> tuple[str, str, str]:
    return row.case.question, row.answer or "", row.rejected or ""


def _capped(selection: Selection, examples: Sequence[Example]) -> list[Example]:
    """No visitor steers a round: 3 rows of a kind a day, and 2% of the kind (3 while there are fewer than 150)."""
    days, totals, kept = Counter[tuple[str, ...]](), Counter[tuple[str, str]](), []
    sizes = Counter(one.row.kind for one in examples)
    for one in examples:
        kind, visitor = one.row.kind, one.row.case.visitor_id
        day = (kind, visitor, str(one.row.case.at_ms // DAY_MS))
        if days[day] >= MAX_ROWS_A_DAY or totals[kind, visitor] >= max(MAX_ROWS_A_DAY, int(sizes[kind] * MAX_VISITOR_SHARE)):
            selection.dropped[f"{kind}: visitor cap"] += 1
            continue
        days[day] += 1
        totals[kind, visitor] += 1
        kept.append(one)
    return kept


def _spread(selection: Selection, examples: Sequence[Example], tools: Mapping[str, str]) -> list[Example]:
    """No three intents make nearly all of a kind: of one that holds too much the heaviest rows stay, and of equals a digest decides."""
    named = [replace(one, intent=name) for one, name in zip(examples, intents([one.row for one in examples], tools), strict=True)]
    sizes = {kind: Counter(one.intent for one in named if one.row.kind == kind) for kind in KINDS}
    most = {kind: most_of_one(counts.values()) for kind, counts in sizes.items()}
    held, left = Counter[tuple[str, str]](), set[str]()
    for one in sorted(named, key=lambda one: (-one.weight, one.row.id)):
        held[one.row.kind, one.intent] += 1
        if held[one.row.kind, one.intent] > most[one.row.kind]:
            selection.dropped[f"{one.row.kind}: intent cap"] += 1
        else:
            left.add(one.row.id)
    return [one for one in named if one.row.id in left]


def _balanced(selection: Selection, examples: Sequence[Example]) -> list[Example]:
    """Leave out the pairs with the most lopsided lengths until chosen and rejected are about as long, lest length be what is learnt."""
    pairs = sorted((one for one in examples if one.row.kind == "dpo"), key=lambda one: (_length_ratio([one]), one.row.id))
    while len(pairs) >= MIN_BALANCED and not LENGTH_RATIO[0] <= _length_ratio(pairs) <= LENGTH_RATIO[1]:
        pairs.pop(-1 if _length_ratio(pairs) > 1 else 0)
        selection.dropped["dpo: length"] += 1
    left = {one.row.id for one in pairs}
    return [one for one in examples if one.row.kind != "dpo" or one.row.id in left]


def _length_ratio(pairs: Sequence[Example]) -> float:
    return fmean(len(one.row.answer or "") for one in pairs) / max(1.0, fmean(len(one.row.rejected or "") for one in pairs))


def _split(examples: Sequence[Example], salt: str) -> list[Example]:
    """Nine to one. What shares a visitor, a conversation or nearly a prompt stays on one side; what is too much for valid is train."""
    groups = Groups()
    visitors = [hashlib.sha256(f"{salt}\0{one.row.case.visitor_id}".encode()).hexdigest() for one in examples]
    prompts = ["\n".join(turn.content for turn in one.row.case.turns) for one in examples]
    for one, visitor, prompt in zip(examples, visitors, prompts, strict=True):
        groups.join((visitor, f"~{one.row.case.conversation_id}", f"~{normalised(prompt)}"))
    for a, b in near_duplicates(prompts):
        groups.join((visitors[a], visitors[b]))
    roots = [groups.root(visitor) for visitor in visitors]
    sizes, most = Counter(roots), max(MAX_COPIES * len(KINDS), VALID_SHARE * len(examples))
    valid = {root for root in sizes if hashlib.sha256(f"{salt}\0{root}".encode()).digest()[0] < 256 * VALID_SHARE and sizes[root] <= most}
    return [replace(one, split="valid" if root in valid else "train") for one, root in zip(examples, roots, strict=True)]
