"""Paired replay: the same held-out questions to what is live and to a round's adapter, and what may be said of the two."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Literal

import httpx
from rich.console import Console
from rich.progress import Progress

from feedback.statistics import detectable, paired_difference, wilson
from feedback.training.job import RoundRefused
from feedback.training.verify import is_right
from server.desk.policy_set import MUST_SAY_NO, read_lines
from server.policy_cli import in_process, put_all
from server.settings import ServerSettings, Settings

Messages = list[dict[str, str]]
# Which of two answers is better: (prompt, first, second).
Judge = Callable[[Messages, str, str], Literal["first", "second", "tie"]]
Interval = tuple[float, float, float]  # a value, and the ends of its 95% interval
IN_FLIGHT, MAX_TOKENS = 4, 512
# A longer answer pleases a judge without being better; a set may not lose more than MAX_FALL, whatever its interval.
LENGTHS, MAX_FALL = (0.8, 1.25), 0.01
out, err = Console(highlight=False, soft_wrap=True, markup=False), Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Case:
    """One question. `row["answer"]` holds the gold answer, or several of which one will do."""

    prompt: Messages
    row: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Said:
    """An answer without its thought; nothing where it did not end by itself. `ms` counts the thought."""

    text: str
    ms: float


@dataclass(frozen=True, slots=True)
class Compared:
    """One set, before and after: shares of right answers, the ratio of lengths, median milliseconds, the judge's wins and losses."""

    num: int
    before: Interval
    after: Interval
    difference: Interval
    length_ratio: float
    ms: tuple[float, float]
    judged: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Metrics:
    """What an evaluation found. `said_no` is the size of that set, and how many lines passed before and after."""

    against: str = ""
    sets: dict[str, Compared] = field(default_factory=dict)
    said_no: tuple[int, int, int] | None = None


def read_cases(path: Path, limit: int) -> list[Case]:
    """The first `limit` rows, at least one; the gold answer is the chosen one where there is no other. Raises RoundRefused."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:limit]]
        cases = [Case(row["prompt"], {**row, "answer": row.get("answer") or row["chosen"][-1]["content"]}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RoundRefused(f"{path} holds no questions with answers: {error}") from error
    if not cases:
        raise RoundRefused(f"{path} is empty")
    return cases


async def evaluate_round(
    settings: Settings, adapters: tuple[str, str], sets: Mapping[str, list[Case]], judge: Judge | None = None, *, with_no: bool = True
) -> Metrics:
    """Compare two adapters (their names; "" is the model itself) over an application of its own, the power of each set told first."""
    for label, cases in sets.items():
        seen = f"four runs in five would see a difference of {100 * detectable(len(cases)):.0f} points"
        out.print(f"{label}: {len(cases)} questions; {seen}")
    compared, passed = {}, []
    # /v1 is asked from within, so no key is wanted.
    async with in_process(settings.model_copy(update={"server": ServerSettings()})) as http:
        base = (await http.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        with Progress(console=err) as bar:
            task = bar.add_task("replaying", total=2 * sum(map(len, sets.values())))
            for label, cases in sets.items():
                names = (f"{base}:{adapter}" if adapter else base for adapter in adapters)
                before, after = [await replay(http, name, cases, lambda: bar.advance(task)) for name in names]
                compared[label] = compare(cases, before, after, judge)
    for adapter in adapters if with_no else ():
        engine = settings.engine.model_copy(update={"adapter": adapter})
        verdicts = await put_all(read_lines(MUST_SAY_NO), "", settings.model_copy(update={"engine": engine}))
        passed.append(sum(not verdict.faults for verdict in verdicts))
    return Metrics(adapters[0], compared, (len(verdicts), passed[0], passed[1]) if passed else None)


async def replay(http: httpx.AsyncClient, model: str, cases: Sequence[Case], advance: Callable[[], object]) -> list[Said]:
    """Every case's answer, at temperature 0. Raises httpx.HTTPError."""
    places = asyncio.Semaphore(IN_FLIGHT)

    async def ask(case: Case) -> Said:
        async with places:
            body = {"model": model, "messages": case.prompt, "temperature": 0, "seed": 0, "max_tokens": MAX_TOKENS}
            began = time.monotonic()
            choice = (await http.post("/v1/chat/completions", json=body)).raise_for_status().json()["choices"][0]
            advance()
            return Said(choice["message"]["content"] or "" if choice["finish_reason"] == "stop" else "", 1000 * (time.monotonic() - began))

    return await asyncio.gather(*map(ask, cases))


def compare(cases: Sequence[Case], before: Sequence[Said], after: Sequence[Said], judge: Judge | None = None) -> Compared:
    """Both sides of one set in numbers."""
    rights = [[is_right(said.text, case.row, case.prompt) for said, case in zip(side, cases, strict=True)] for side in (before, after)]
    shares = [(mean(right), *wilson(sum(right), len(right))) for right in rights]
    lengths = [sum(len(said.text) for said in side) for side in (before, after)]
    difference = ((sum(rights[1]) - sum(rights[0])) / len(cases), *paired_difference(rights[0], rights[1]))
    ms = (median(said.ms for said in before), median(said.ms for said in after))
    judged = _judged(cases, before, after, judge) if judge else None
    return Compared(len(cases), shares[0], shares[1], difference, lengths[1] / max(1, lengths[0]), ms, judged)


def _judged(cases: Sequence[Case], before: Sequence[Said], after: Sequence[Said], judge: Judge) -> tuple[int, int]:
    """Wins and losses of `after`: only what the judge says with the two in either order counts."""
    differing = [(case.prompt, old.text, new.text) for case, old, new in zip(cases, before, after, strict=True) if old.text != new.text]
    verdicts = [(judge(prompt, old, new), judge(prompt, new, old)) for prompt, old, new in differing]
    return verdicts.count(("second", "first")), verdicts.count(("first", "second"))


def objections(metrics: Metrics) -> list[str]:
    """Why what was measured does not let a round be promoted; nothing when it does."""
    if not metrics.sets:
        return ["it was not evaluated: kefu round evaluate"]
    found = [] if any(each.difference[1] > 0 for each in metrics.sets.values()) else ["no set got better beyond chance"]
    for name, each in metrics.sets.items():
        if each.difference[0] < -MAX_FALL:
            found.append(f"{name} fell by {-100 * each.difference[0]:.1f} points")
        if not LENGTHS[0] <= each.length_ratio <= LENGTHS[1]:
            found.append(f"in {name} answers are {each.length_ratio:.2f} times as long")
    if metrics.said_no and metrics.said_no[2] < metrics.said_no[1]:
        found.append("of {} questions it must say no to, it said no to {} before and to {} after".format(*metrics.said_no))
    return found
