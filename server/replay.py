"""Paired replay: the same held-out questions to what is live and to a round's adapter, and what may be said of the two."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import httpx
from rich.console import Console
from rich.progress import Progress

from feedback.evaluation import Change, Compared, Metrics, SaidNo, some_of
from feedback.judge import Judge, both_orders
from feedback.statistics import detectable, paired_difference, wilson
from feedback.training.job import RoundRefused
from feedback.training.verify import answer_of, is_right
from server.desk.policy_set import MUST_SAY_NO, read_lines
from server.policy_cli import in_process, put_all
from server.settings import ServerSettings, Settings

Messages = list[dict[str, str]]
IN_FLIGHT, MAX_TOKENS = 4, 512
out, err = Console(highlight=False, soft_wrap=True, markup=False), Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Case:
    """One question. `row["answer"]` holds the gold answer, or several of which one will do."""

    prompt: Messages
    row: Mapping[str, object]

    @property
    def wanted(self) -> str:
        """One gold answer."""
        gold = self.row["answer"]
        return str(gold[0] if isinstance(gold, list) else gold)

    def last(self, role: str) -> str:
        """What was said last in this role; empty for nothing."""
        return next((said["content"] for said in self.prompt[::-1] if said["role"] == role), "")


@dataclass(frozen=True, slots=True)
class Said:
    """An answer without its thought; nothing where it did not end by itself. `ms` counts the thought."""

    text: str
    ms: float


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
) -> tuple[Metrics, dict[str, list[Change]]]:
    """Compare two adapters (their names; "" is the model itself) over an application of its own, the power of each set told first.

    Returns the numbers, and for each set some of the answers that changed.
    """
    for label, cases in sets.items():
        out.print(f"{label}: {len(cases)} questions; {_power(len(cases))}")
    compared, changes = {}, {}
    # /v1 is asked from within, so no key is wanted.
    async with in_process(settings.model_copy(update={"server": ServerSettings()})) as http:
        base = (await http.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        with Progress(console=err) as bar:
            task = bar.add_task("replaying", total=2 * sum(map(len, sets.values())))
            for label, cases in sets.items():
                names = (f"{base}:{adapter}" if adapter else base for adapter in adapters)
                before, after = [await replay(http, name, cases, lambda: bar.advance(task)) for name in names]
                compared[label] = await asyncio.to_thread(compare, cases, before, after, judge)
                changes[label] = changed(cases, before, after)
    return Metrics(adapters[0], compared, await _say_no(settings, adapters) if with_no else None), changes


async def _say_no(settings: Settings, adapters: tuple[str, str]) -> SaidNo:
    lines = read_lines(MUST_SAY_NO)
    out.print(f"must say no: {len(lines)} questions; {_power(len(lines))}")
    engines = (settings.engine.model_copy(update={"adapter": adapter}) for adapter in adapters)
    before, after = [await put_all(lines, "", settings.model_copy(update={"engine": engine})) for engine in engines]
    rights = [[not verdict.faults for verdict in side] for side in (before, after)]
    forbidden = [sum(verdict.is_forbidden for verdict in side) for side in (before, after)]
    return SaidNo(len(lines), (sum(rights[0]), sum(rights[1])), paired_difference(rights[0], rights[1]), (forbidden[0], forbidden[1]))


def _power(num: int) -> str:
    return f"four runs in five would see a difference of {100 * detectable(num):.0f} points"


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
    rights = [_rights(cases, side) for side in (before, after)]
    shares = [(mean(right), *wilson(sum(right), len(right))) for right in rights]
    lengths = [sum(len(said.text) for said in side) for side in (before, after)]
    difference = ((sum(rights[1]) - sum(rights[0])) / len(cases), *paired_difference(rights[0], rights[1]))
    ms = (median(said.ms for said in before), median(said.ms for said in after))
    judged = _judged(cases, before, after, judge) if judge else None
    flips = list(zip(*rights, strict=True))
    counted = flips.count((False, True)), flips.count((True, False))
    return Compared(len(cases), shares[0], shares[1], difference, lengths[1] / max(1, lengths[0]), ms, judged, counted)


def changed(cases: Sequence[Case], before: Sequence[Said], after: Sequence[Said]) -> list[Change]:
    """Some of the questions that one side alone got right, from all over the set."""
    flips = []
    for case, old, new, was, is_better in zip(cases, before, after, _rights(cases, before), _rights(cases, after), strict=True):
        if was != is_better:
            change = Change(case.last("user"), answer_of(case.wanted), old.text, new.text, is_better)
            flips.append((case.last("system"), change))
    random.Random(0).shuffle(flips)
    return some_of(flips)


def _rights(cases: Sequence[Case], side: Sequence[Said]) -> list[bool]:
    return [is_right(said.text, case.row, case.prompt) for said, case in zip(side, cases, strict=True)]


def _judged(cases: Sequence[Case], before: Sequence[Said], after: Sequence[Said], judge: Judge) -> tuple[int, int]:
    """Wins and losses of `after`."""
    differing = [(case.prompt, old.text, new.text) for case, old, new in zip(cases, before, after, strict=True) if old.text != new.text]
    verdicts = [both_orders(judge, prompt, old, new) for prompt, old, new in differing]
    return verdicts.count("second"), verdicts.count("first")
