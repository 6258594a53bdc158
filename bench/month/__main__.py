"""`make loop`: a scripted month at the desk, and what the loop learns from it, on one page.

Simulated customers talk to the real desk; their signals become pairs, two raters look at them, an export trains a round, its evaluation
lets it out by degrees, and it is measured again. Then a poisoned export is refused, and the round is taken back.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.month.customers import Told, cases, measured, read_script, visit
from bench.month.house import House
from bench.month.report import Outcome, Step, write_report
from feedback.evaluation import Metrics
from feedback.export import read_snapshot
from feedback.insights import DAY_MS
from feedback.lookback import Lookback
from feedback.record import now_ms
from feedback.review import Reviews
from feedback.signals import Signals, weighed
from feedback.statistics import paired_difference
from feedback.writers import PROVENANCE, conversation_hash
from server.desk.policy_file import DEMO, load_policy
from server.export_cli import make_gates
from server.settings import load_settings

NUM_DAYS, AT_ONCE, CANARY_SHARE, MAX_ROLLBACK_S, SEED = 30, 8, 0.3, 30, "month"
CLI = (sys.executable, "-c", "from server.cli import main; main()")
TRAINING = ("learning_rate=5e-4", "rank=16", "batch_size=4", "beta=0.3", "max_steps=40")
console = Console(soft_wrap=True, highlight=False, markup=False)
Held = tuple[bool, str]


class Month:
    """The steps over one house, through the doors that a shop would use. Each returns whether it held, and what it did in figures."""

    def __init__(self, house: House, outcome: Outcome, options: argparse.Namespace) -> None:
        self._house, self._outcome, self._options = house, outcome, options
        self._data, self._script = Path(os.environ["KEFU_DATA_DIR"]), read_script()
        self._export, self._kinds = Path(), dict[str, str]()

    async def play(self) -> None:
        """Every step in order; what the gates stop goes no further. Raises CalledProcessError when a command of ours fails."""
        await self._take("conversations", self.talk())
        await self._take("signals", self.weigh())
        await self._take("sample before", self.sample("before"))
        await self._take("review", self.review())
        await self._take("export", self.export())
        await self._take("round", self.train("round-1", self._export))
        is_out = await self._take("evaluation", self.evaluate("round-1")) and await self._take("canary", self.canary())
        if is_out:
            await self._take("promotion", self.promote())
            await self._take("sample after", self.sample("after"))
        await self._take("poisoned round", self.poison())
        if is_out:
            await self._take("rollback", self.rollback())
        if self._options.grpo:
            await self._take("GRPO round", self.train("round-3", self._export, "grpo"))
            await self._take("GRPO evaluation", self.evaluate("round-3"))

    async def _take(self, name: str, work: Awaitable[Held]) -> bool:
        began = time.monotonic()
        held, said = await work
        step = Step(name, held, said, time.monotonic() - began)
        self._outcome.steps.append(step)
        console.print(f"{name}{'' if held else ' DID NOT HOLD'}, {step.seconds:.0f} s: {said}")
        return held

    async def talk(self) -> Held:
        """The month's conversations, spread over its days: the weakness must show."""
        num, began_ms = self._options.conversations, now_ms() - NUM_DAYS * DAY_MS
        came = partial(visit, self._house, self._script, SEED)
        self._outcome.told = told = await self._all("conversations", num, lambda at: came(at, began_ms + NUM_DAYS * DAY_MS * at // num))
        self._kinds = {each.conversation_id: each.kind for each in told}
        return _right(told, "slang") < _right(told, "plain"), ", ".join(
            f"{num} {kind} ({_right(told, kind):.0%} right at once)" for kind, num in Counter(self._kinds.values()).items()
        )

    async def weigh(self) -> Held:
        """Who means ill must weigh less than they pressed."""
        await Lookback(self._house.database, Signals(self._house.database)).sweep()
        ledger = await self._house.database.read(weighed)
        for each in ledger:
            num, weight = self._outcome.signals.get(each.signal.kind, (0, 0.0))
            self._outcome.signals[each.signal.kind] = num + 1, weight + each.weight
        ill = [each for each in ledger if self._kinds[each.signal.conversation_id] == "hostile"]
        num_held = sum((each.reason or "").startswith("quarantine") for each in ledger)
        share, weight = len(ill) / len(ledger), sum(each.weight for each in ill) / sum(each.weight for each in ledger)
        told = f"{len(ledger)} signals, {num_held} in quarantine; the hostile gave {share:.1%} and have {weight:.1%} of the weight"
        return weight < share or not ill, told

    async def sample(self, when: str) -> Held:
        """The same held-out questions each time: the second time slang must be answered better beyond chance, and nothing else worse."""
        mine = self._outcome.samples[when] = await self._all(f"sample {when}", self._options.sample, self._measure)
        held, said = True, f"slang {_right(mine, 'slang'):.0%} right, plain {_right(mine, 'plain'):.0%}"
        for kind in ("slang", "plain") if when == "after" else ():
            both = [[each.was_right for each in told if each.kind == kind] for told in self._outcome.samples.values()]
            low, high = paired_difference(both[0], both[1])
            held, said = held and (low > 0 if kind == "slang" else high >= 0), f"{said}; {kind} changed by {low:+.0%} to {high:+.0%}"
        return held, f"{len(mine)} questions: {said}"

    async def review(self) -> Held:
        """Two raters who know the truth: honest signals leave quarantine, and each pair is judged twice."""
        database, reviews = self._house.database, Reviews(self._house.database)
        held = [each.signal for each in await database.read(weighed) if (each.reason or "").startswith("quarantine")]
        honest = [each.id for each in held if self._kinds.get(each.conversation_id) != "hostile"]
        await Signals(database).release(honest, "rater one")
        snapshot = await database.read(lambda connection: read_snapshot(connection, make_gates(load_policy(DEMO))))
        await reviews.offer(snapshot.rows)
        said = Counter[bool]()
        for rater in ("rater one", "rater two"):
            while pair := await reviews.next_for_review(rater):
                is_good = any(each.is_met(pair.chosen) and not each.is_met(pair.rejected) for each in self._script.intent)
                said[is_good] += 1
                await reviews.judge(pair.id, pair.seen, rater, "good" if is_good else "bad")
        judged = f"{(await reviews.agreement()).num_pairs} pairs judged twice, {said[True] // 2} good and {said[False] // 2} bad"
        return said[True] > 0, f"{judged}; {len(honest)} of {len(held)} signals let out of quarantine"

    async def export(self) -> Held:
        """`kefu export`; what there is of trainers' loaders must read every file, and nobody hostile have a row in it."""
        self._export = Path((await self._kefu("export")).rpartition("written to ")[2].strip())
        ill = {conversation_hash(name) for name, kind in self._kinds.items() if kind == "hostile"}
        rows = [row for row in _lines(self._export / PROVENANCE) if row["conversation"] in ill]
        counts = json.loads((self._export / "manifest.json").read_text(encoding="utf-8"))["counts"]
        told = ", ".join(f"{num} {kind}" for kind, num in counts.items())
        return not rows, f"{told}; {len(rows)} rows of hostile conversations; {await asyncio.to_thread(self._load)}"

    def _load(self) -> str:
        load = import_module("datasets").load_dataset
        files = [*sorted(self._export.glob("trl*/*/*.jsonl")), *self._export.glob("verl/*.json")]
        num = sum(len(load("json", data_files=str(path), cache_dir=str(self._data / "loaders"))["train"]) for path in files)
        return f"the loader read {num} rows of {len(files)} files"

    async def train(self, name: str, data: Path, method: str = "dpo") -> Held:
        """`kefu round start` on an export."""
        fields = [*TRAINING, f"threads={self._options.threads}", *self._options.fields]
        given = [word for each in fields for word in ("--with", each)]
        said = await self._kefu("round", "start", "--data", data, "--method", method, "--anyway", *given)
        num = len(_lines(data / "trl" / method / "train.jsonl"))
        return f"{name} is a candidate" in said, f"{method} on {num} rows: {said.partition('. Next')[0].strip()}"

    async def evaluate(self, name: str) -> Held:
        """`kefu round evaluate` on the weakness and on everything else, in words that no customer used."""
        sets: list[object] = []
        for label in ("slang", "plain"):
            rows = cases(self._script, SEED, self._options.sample // 2, is_slang=label == "slang")
            (self._data / f"{label}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
            sets += ["--set", self._data / f"{label}.jsonl"]
        said = await self._kefu("round", "evaluate", name, *sets)
        self._outcome.rounds[name] = found = msgspec.convert((await self._house.rounds.get(name)).metrics, Metrics)
        against = "; ".join(line for line in said.splitlines() if line.startswith("against it"))
        shown = "; ".join(f"{label} {each.before[0]:.0%} to {each.after[0]:.0%}" for label, each in found.sets.items())
        return not against, f"{shown}; {against or 'nothing speaks against it'}"

    async def canary(self) -> Held:
        """A share of new conversations talks to the round; over a red line it would be taken back."""
        await self._kefu("round", "promote", "round-1", "--share", CANARY_SHARE)
        await self._house.follow()
        began_at, num = self._options.conversations, max(20, self._options.conversations // 10)
        await self._all("canary", num, lambda at: visit(self._house, self._script, SEED, began_at + at, now_ms()))
        arms = await self._house.rounds.arms(await self._house.rounds.get("round-1"))
        await self._house.follow()
        told = "{} answers of the round, {} of them against the policy; {} and {} of the model itself"
        numbers = [number for arm in arms for number in (arm.answers, arm.violations)]
        return (await self._house.rounds.get("round-1")).state == "canary" and 0 not in (numbers[0], numbers[2]), told.format(*numbers)

    async def promote(self) -> Held:
        """All customers talk to it."""
        said = await self._kefu("round", "promote", "round-1", "--share", 1)
        await self._house.follow()
        return (await self._house.rounds.get("round-1")).state == "live", said.partition(". ")[0]

    async def poison(self) -> Held:
        """The same export with its labels turned round: what comes of it must not be promoted."""
        shutil.copytree(self._export, self._data / "poisoned")
        for path in (self._data / "poisoned").glob("trl*/dpo/train.jsonl"):
            rows = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in _lines(path)]
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        await self.train("round-2", self._data / "poisoned")
        _, found = await self.evaluate("round-2")
        return "is not promoted" in await self._kefu("round", "promote", "round-2", status=2), f"{found}; it was refused"

    async def rollback(self) -> Held:
        """From the command until a customer is answered by the model itself."""
        began = time.monotonic()
        said = await self._kefu("round", "rollback")
        await self._house.follow()
        await self._measure(0)
        took_s, serving = time.monotonic() - began, await self._house.rounds.serving()
        return serving == (None, None) and took_s < MAX_ROLLBACK_S, f"{said.strip()} Its first answer came {took_s:.1f} s after the command"

    def _measure(self, number: int) -> Awaitable[Told]:
        return measured(self._house, self._script, SEED, number, now_ms())

    async def _all(self, name: str, num: int, one: Callable[[int], Awaitable[Told]]) -> list[Told]:
        """`one` of each number, several at once, with the time that is left."""
        room = asyncio.Semaphore(AT_ONCE)
        with Progress(TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(name, total=num)

            async def held(number: int) -> Told:
                async with room:
                    told = await one(number)
                    bar.advance(task)
                    return told

            return await asyncio.gather(*map(held, range(num)))

    async def _kefu(self, *words: object, status: int = 0) -> str:
        """What a command of ours says. Raises CalledProcessError when it does not end with `status`."""
        command, errors = [*CLI, *map(str, words)], subprocess.STDOUT if status else None
        done = await asyncio.to_thread(subprocess.run, command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
        if done.returncode != status:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout)
        return str(done.stdout)


def _right(told: list[Told], kind: str) -> float:
    mine = [each.was_right for each in told if each.kind == kind]
    return sum(mine) / max(1, len(mine))


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


async def _play(outcome: Outcome, options: argparse.Namespace) -> None:
    async with House(load_settings()).living() as house:
        await Month(house, outcome, options).play()


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.month", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=2000, help="how many in the month")
    parser.add_argument("--data", type=Path, help="an empty folder for the record, the rounds and the page; else a new one")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of engine and trainer; 0 means all")
    parser.add_argument("--sample", type=int, default=120, help="held-out questions, asked before and after")
    parser.add_argument("--with", dest="fields", action="append", default=[], help="training settings, as `kefu round start --with`")
    parser.add_argument("--grpo", action="store_true", help="a round of GRPO too; it writes its own answers, so it takes long")
    options = parser.parse_args()
    data = (options.data or Path(tempfile.mkdtemp(prefix="kefu-month-"))).absolute()
    data.mkdir(parents=True, exist_ok=True)
    if any(data.iterdir()):
        parser.error(f"{data} is not empty")
    for name in [name for name in os.environ if name.startswith("KEFU_")]:
        del os.environ[name]
    os.environ |= {"KEFU_DATA_DIR": str(data), "KEFU_ENGINE__THREADS": str(options.threads)}
    outcome = Outcome(options.conversations, SEED)
    try:
        asyncio.run(_play(outcome, options))
    finally:
        console.print(f"the page: {write_report(outcome, data)}")
    if missed := [step.name for step in outcome.steps if not step.held]:
        sys.exit(f"what did not hold: {', '.join(missed)}")


if __name__ == "__main__":
    main()
