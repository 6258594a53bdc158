"""What customers want, told by what answers it: so that an export is not made of three questions asked again and again."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from feedback.pairs import Row
from feedback.rewards import action_of
from feedback.similar import Groups, near_duplicates, normalised

# The fullest intents and what they may make of a kind of rows together; where customers want less than so many things, that is the shop.
NUM_FULLEST, MAX_FULLEST_SHARE, MIN_INTENTS = 3, 0.8, 10
# Fewer rows than this are a stray question, which makes a shop's range no wider.
MIN_ROWS = 3
_CITED = re.compile(r"\[(\d{1,3})\]")


def intents(rows: Sequence[Row], tools: Mapping[str, str]) -> list[str]:
    """A name for what each row is about; `tools` is what was called for an answer, by completion.

    A right answer tells: its tool, else the passage that it cites first, else what it does instead of answering. A wrong one tells
    nothing, and takes the commonest name among right answers to nearly the same question, or the question's own.
    """
    asked = sorted({normalised(row.case.question) for row in rows})
    groups = Groups()
    for a, b in near_duplicates(asked):
        groups.join((asked[a], asked[b]))
    clusters = [groups.root(normalised(row.case.question)) for row in rows]
    told = [None if row.label is False else _told(row, tools) for row in rows]
    names: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for cluster, name in zip(clusters, told, strict=True):
        names[cluster].update([name] if name else [])
    common = {cluster: min(counts, key=lambda name: (-counts[name], name)) for cluster, counts in names.items() if counts}
    # The words of a question may be somebody's own: its digest stands for it.
    return [
        name or common.get(cluster) or f"question {hashlib.sha256(cluster.encode()).hexdigest()[:8]}"
        for cluster, name in zip(clusters, told, strict=True)
    ]


def _told(row: Row, tools: Mapping[str, str]) -> str | None:
    answer = row.answer or ""
    if tool := tools.get(row.answer_id or ""):
        return f"tool {tool}"
    passages = {each.number: each.id for each in row.case.passages}
    cited = next((passages[int(number)] for number in _CITED.findall(answer) if int(number) in passages), None)
    action = action_of(answer)
    return cited or (None if action == "answer" else action)


def most_of_one(sizes: Collection[int]) -> int:
    """How many rows any intent may hold: as many as let the three fullest make 80% of all. Where intents are few, as many as there are."""
    fullest, rest = sorted(sizes, reverse=True)[:NUM_FULLEST], sorted(sizes, reverse=True)[NUM_FULLEST:]
    if sum(size >= MIN_ROWS for size in sizes) < MIN_INTENTS:
        return max(sizes, default=0)
    room = MAX_FULLEST_SHARE / (1 - MAX_FULLEST_SHARE) * sum(rest) + 1e-9
    return next(most for most in range(fullest[0], -1, -1) if sum(min(size, most) for size in fullest) <= room)
