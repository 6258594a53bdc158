"""`kefu round`: train an adapter on what was learnt, measure it, let it out by degrees, take it back."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from backends.adapter import AdapterRegistry, file_digest
from backends.fit import this_machine
from feedback.evaluation import Metrics, objections, ranking, write_changes
from feedback.judge import ModelJudge
from feedback.training.job import Job, Method, RoundRefused, Serving, TrainingFailed, train, trainer_here
from feedback.training.rows import snapshot_sha256, too_few
from server.agent_cli import ACTOR, HEAD_FILE
from server.models import choose
from server.replay import evaluate_round, read_cases
from server.settings import Settings, load_settings
from web import load_strings

if TYPE_CHECKING:
    from feedback.rounds import Round, Rounds

T = TypeVar("T")
round_cli = typer.Typer(no_args_is_help=True, help="Rounds of training: start, resume, evaluate, promote, rollback, list, show.")
out, err = Console(highlight=False, soft_wrap=True, markup=False), Console(stderr=True)

Name = Annotated[str, typer.Argument(metavar="ROUND", help="Its name in `kefu round list`.")]
Anyway = Annotated[bool, typer.Option("--anyway", help="Do it in spite of what speaks against it.")]


@round_cli.command("start")
def start(
    data: Annotated[Path, typer.Option(help="The folder of an export.")],
    method: Annotated[Method, typer.Option(help="How to train; `reward` makes a model that judges answers, for GRPO.")] = "dpo",
    model: Annotated[Path | None, typer.Option(help="The base as a model folder; else the model in the settings, or kefu-mini.")] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--with", help="Training settings: learning_rate=1e-4, rank=16, epochs=1, threads=2 ..."),
    ] = None,
    reward_model: Annotated[
        str, typer.Option(metavar="ROUND", help="GRPO alone: a reward model that orders what is equally right by the rules.")
    ] = "",
    serving: Annotated[
        Serving, typer.Option(help="Meanwhile a server here thinks least, or frees its model's memory and tells customers to wait.")
    ] = "run",
    anyway: Anyway = False,
) -> None:
    """Train a LoRA on an export, on this machine and at low priority; it becomes a candidate. Interrupted, it goes on with `resume`."""
    settings = load_settings()
    given = {"method": method, "trainer": trainer_here(method, reward_model), "model": str(_folder(settings, model))}
    given |= {"data": str(data.absolute()), "reward_model": reward_model, "serving": serving}
    try:
        job = msgspec.convert({**given, **dict(field.split("=", 1) for field in fields or [])}, Job, strict=False)
    except ValueError as error:
        raise RoundRefused(f"--with wants name=value: {error}") from error
    judge = _run(settings, lambda rounds: rounds.get(job.reward_model)) if job.reward_model else None
    if judge and (job.method, judge.job["method"], judge.state) != ("grpo", "reward", "candidate"):
        raise RoundRefused(
            f"GRPO alone asks a trained reward model: this is {job.method}, {judge.id} is {judge.job['method']}, {judge.state}"
        )
    snapshot = snapshot_sha256(data)
    if (reason := too_few(data, method)) and not anyway:
        raise RoundRefused(f"not enough to learn from: {reason}. Collect more, or write articles; --anyway trains all the same")
    base = file_digest(_base(settings)) if _base(settings).is_file() else ""
    _train(settings, _run(settings, lambda rounds: rounds.begin(asdict(job), base, snapshot)))


@round_cli.command("resume")
def resume(name: Name) -> None:
    """Go on with a round that was interrupted, from its last checkpoint."""
    settings = load_settings()
    _train(settings, _run(settings, lambda rounds: rounds.get(name)))


def _train(settings: Settings, begun: "Round") -> None:
    """Train, with loss and memory on the terminal, and keep the adapter."""
    if begun.state != "training":
        raise RoundRefused(f"{begun.id} is trained already")
    job = replace(msgspec.convert(begun.job, Job), folder=str((settings.data_dir / "rounds" / begun.id).absolute()))
    steps = []
    told = TextColumn("loss {task.fields[loss]:.3f}  {task.fields[gigabytes]:.1f} GB")
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), told, TimeRemainingColumn(), console=err) as bar:
        task = bar.add_task(f"{begun.id} ({job.method}, {job.trainer})", total=None, loss=float("nan"), gigabytes=0.0)
        for at in train(job):
            steps.append(at)
            bar.update(task, completed=at.step, total=at.num_steps, loss=at.loss, gigabytes=at.memory_bytes / 1e9)
    verified = [at.verified for at in steps if at.verified is not None]
    found = Metrics(
        verified=(verified[0], verified[-1]) if verified else None, ranked=ranking([pair for at in steps for pair in at.ranked])
    )
    _run(settings, lambda rounds: rounds.measured(begun.id, asdict(found)))
    key = None if job.method == "reward" else _registry(settings).add(begun.id, job.adapter, _base(settings))
    _run(settings, lambda rounds: rounds.trained(begun.id, key))
    out.print(f"{begun.id} is a {f'candidate, {key}' if key else 'reward model'}. Next: kefu round evaluate {begun.id}")


@round_cli.command("evaluate")
def evaluate(
    name: Name,
    sets: Annotated[list[Path] | None, typer.Option("--set", help="JSONL of prompts with answers; else the export's valid rows.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Questions of each set at most.")] = 400,
    judge: Annotated[str, typer.Option(metavar="URL", help="A model (http://...) that says which of two answers is better.")] = "",
    must_say_no: Annotated[bool, typer.Option(help='Also put the "must say no" set to both.')] = True,
) -> None:
    """Ask the same held-out questions with the adapter and with what is live now, and say what the difference is worth."""
    settings = load_settings()
    measured, (live, _) = _run(settings, lambda rounds: rounds.get(name)), _run(settings, lambda rounds: rounds.serving())
    if measured.job["method"] == "reward":
        if sets or judge:
            raise RoundRefused(f"{name} is a reward model, measured when it was trained: --set and --judge do not fit it")
        _show(msgspec.convert(measured.metrics, Metrics))
        return
    if measured.adapter is None or _registry(settings).all().get(name) != measured.adapter:
        raise RoundRefused(f"{name} has no adapter")
    trl = Path(str(measured.job["data"])) / "trl"
    paths = sets or [path for path in (trl / "grpo" / "valid.jsonl", trl / "dpo" / "valid.jsonl") if path.exists()][:1]
    cases = {path.stem: read_cases(path, limit) for path in paths}
    against = live.id if live and live.id != name else ""
    asked = ModelJudge(judge) if judge else None
    metrics, changes = asyncio.run(evaluate_round(settings, (against, name), cases, asked, with_no=must_say_no))
    metrics = replace(metrics, verified=msgspec.convert(measured.metrics, Metrics).verified)
    # Somebody's rows may have been erased while this went on.
    is_stale = _run(settings, lambda rounds: rounds.get(name)).state == "stale_erased"
    write_changes(settings.data_dir, name, {} if is_stale else changes)
    _run(settings, lambda rounds: rounds.measured(name, asdict(metrics)))
    _show(metrics)


def _show(metrics: Metrics) -> None:
    table = Table("set", "n", "right before", "right after", "difference", "length", "ms", box=None)
    for label, found in metrics.sets.items():
        shares = [f"{100 * share:.1f}% ({100 * low:.0f}-{100 * high:.0f})" for share, low, high in (found.before, found.after)]
        change = "{:+.1f} ({:+.0f} to {:+.0f})".format(*(100 * value for value in found.difference))
        table.add_row(label, str(found.num), *shares, change, f"x{found.length_ratio:.2f}", "{:.0f}/{:.0f}".format(*found.ms))
        if found.judged:
            table.add_row("  by the judge", "", "{} losses".format(*found.judged[1:]), "{} wins".format(*found.judged))
    if no := metrics.no:
        change = "({:+.0f} to {:+.0f})".format(*(100 * end for end in no.change))
        table.add_row("must say no", str(no.num), *(f"{num} passed" for num in no.passed), change)
        table.add_row("  what must never be said", "", *map(str, no.forbidden))
    out.print(table)
    for which, (num, (share, low, high)) in metrics.ranked.items():
        out.print(f"{which}: of {num} held-out pairs {100 * share:.1f}% in the right order ({100 * low:.0f}-{100 * high:.0f})")
    if metrics.verified:
        out.print("by the rules alone, while it trained: {:.3f} at the start, {:.3f} at the end".format(*metrics.verified))
    out.print("\n".join(f"against it: {reason}" for reason in _objections(metrics)) or "nothing speaks against promoting it")


def _objections(metrics: Metrics) -> list[str]:
    return objections(metrics, load_strings()["en"])


@round_cli.command("promote")
def promote(
    name: Name,
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="The share of conversations that talk to it; 1 is all of them.")] = 0.1,
    anyway: Anyway = False,
) -> None:
    """Let customers talk to it, first in a share of the conversations. A server follows within a second, and takes back what goes wrong."""
    settings = load_settings()
    metrics = msgspec.convert(_run(settings, lambda rounds: rounds.get(name)).metrics, Metrics)
    if (reasons := _objections(metrics)) and not anyway:
        raise RoundRefused(f"{name} is not promoted: {'; '.join(reasons)}. --anyway does it all the same")
    _run(settings, lambda rounds: rounds.promote(name, share), "round_promoted", name)
    out.print(f"{name} answers in {share:.0%} of the conversations. Take it back: kefu round rollback")


@round_cli.command("rollback")
def rollback() -> None:
    """Take back the canary, or else what is live; what was there before answers again, within a second."""
    taken, live = _run(load_settings(), lambda rounds: rounds.rollback("taken back by hand"), "round_rolled_back", "by hand")
    out.print(f"{taken} is taken back; {live or 'the model itself'} answers.")


@round_cli.command("list")
def list_rounds() -> None:
    """All rounds, the newest first."""
    table = Table("round", "state", "method", "adapter", "parent", "why", box=None)
    for each in _run(load_settings(), lambda rounds: rounds.all()):
        table.add_row(each.id, each.state, str(each.job["method"]), each.adapter or "", each.parent_id or "", each.reason)
    out.print(table if table.row_count else "none; begin one: kefu round start --data EXPORT")


@round_cli.command("show")
def show(name: Name) -> None:
    """One round: where it comes from, how it was trained, what was measured."""
    found = _run(load_settings(), lambda rounds: rounds.get(name))
    out.print(json.dumps({**asdict(found), "metrics": None}, ensure_ascii=False, indent=1))
    _show(msgspec.convert(found.metrics, Metrics))


def _run(settings: Settings, work: Callable[["Rounds"], Awaitable[T]], action: str = "", subject: str = "") -> T:
    """Do something with the registry; an `action` goes into the audit log."""
    from feedback.audit import Audit
    from feedback.database import Database, RecordUnavailable
    from feedback.rounds import Rounds

    async def whole() -> T:
        with closing(Database.open(settings.database_url, settings.data_dir)) as database:
            done = await work(Rounds(database))
            if action:
                await Audit(database, settings.data_dir / HEAD_FILE).write(ACTOR, action, subject)
            return done

    try:
        return asyncio.run(whole())
    except RecordUnavailable as error:
        raise TrainingFailed(str(error)) from error


def _registry(settings: Settings) -> AdapterRegistry:
    return AdapterRegistry(settings.data_dir / "adapters")


def _base(settings: Settings) -> Path:
    """The model that serves."""
    from server.app import BUILT_IN

    return choose(settings, this_machine(settings.engine.memory_gib)).engine.model or BUILT_IN


def _folder(settings: Settings, model: Path | None) -> Path:
    """The same model as a folder that trainers read. Raises RoundRefused."""
    from server.app import BUILT_IN

    base = model or _base(settings)
    folder = BUILT_IN.parent / "mlx" if base == BUILT_IN else base
    if not (folder / "config.json").is_file():
        raise RoundRefused(f"{base} is no folder that a trainer reads: name the one that it was made from with --model")
    return folder.absolute()
