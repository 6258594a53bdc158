"""`kefu policy`: is the policy file right, and does the model say no where it must."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from uuid import uuid4

import httpx
import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from backends.fit import this_machine
from server.desk.phrases import compile_phrase
from server.desk.policy_file import DEMO, BadPolicy, load_policy
from server.desk.policy_store import PolicyStore
from server.desk.promises import is_negated
from server.models import choose
from server.settings import Settings, load_settings

MUST_SAY_NO = DEMO.with_name("must_say_no.jsonl")
# What a line may ask for by name instead of listing phrases.
GROUPS = {
    "refuse": [
        *("cannot", "can't", "can not", "unable", "not able", "not possible", "won't", "don't have", "do not have", "no information"),
        *("outside what I", "only help", "found nothing", "could not find", "not sure", "不能", "无法", "没法", "不支持", "不可以"),
        *("没有", "不提供", "帮不了", "做不到", "只能", "不在", "查不到", "没把握"),
    ],
    "person": ["person", "team", "colleague", "human", "人工", "转接", "同事"],
}
UNLIMITED = {"messages_per_minute": 1e6, "visitors_per_minute": 1e6, "messages_per_day": 10**6, "address_messages_per_day": 10**6}
READY_S, MAX_WAITS = 600, 30

policy_cli = typer.Typer(no_args_is_help=True, help="The policy file: check it, and test the model against it.")
out, err = Console(highlight=False, markup=False), Console(stderr=True)


class Line(BaseModel):
    """One test: what a customer writes, message by message, and what the last answer must and must never hold (phrases)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    language: Literal["en", "zh"]
    ask: list[str] = Field(min_length=1)
    never: list[str] = Field(default_factory=list)
    must: list[str] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a line went; no `faults` means that it passed."""

    line: Line
    answer: str
    faults: tuple[str, ...]


@policy_cli.command("check")
def check(file: Annotated[Path | None, typer.Argument(help="A policy file; else the one in force.")] = None) -> None:
    """Read a policy file as the server does; say what is wrong with it, line by line, or its version."""
    path = file or PolicyStore(load_settings()).path
    terms = load_policy(path)["en"]
    policy = terms.file
    counts = ", ".join(f"{len(getattr(policy, name))} {name}" for name in ("facts", "promises", "must_say", "handover"))
    out.print(f"{path.name} is right: {counts}.\nversion {terms.version}", soft_wrap=True)


@policy_cli.command("test")
def test(
    tests: Annotated[
        list[Path] | None, typer.Option("--set", help='A JSONL file of tests; else the demo shop\'s "must say no" set.')
    ] = None,
    url: Annotated[str, typer.Option(help="A running kefu; else the model in the settings is started for the test.")] = "",
) -> None:
    """Put every line of a test set to the model, as a customer would. Exit status 1 when one fails."""
    lines = [line for path in tests or [MUST_SAY_NO] for line in read_lines(path)]
    verdicts = asyncio.run(_put_all(lines, url, load_settings()))
    table = Table("line", "", "answer", "what is wrong", box=None)
    for verdict in verdicts:
        table.add_row(verdict.line.id, "FAIL" if verdict.faults else "ok", verdict.answer[:160], "; ".join(verdict.faults))
    out.print(table)
    num_passed = sum(not verdict.faults for verdict in verdicts)
    num_said = sum(any(fault.startswith("says") for fault in verdict.faults) for verdict in verdicts)
    out.print(f"{num_passed} of {len(verdicts)} passed; {num_said} said what must never be said.")
    raise typer.Exit(num_passed != len(verdicts))


def read_lines(path: Path) -> list[Line]:
    """The tests of a JSONL file. Raises BadPolicy with the number of a bad line."""
    try:
        return [_read_line(text, f"{path.name}, line {number}") for number, text in enumerate(path.read_text("utf-8").splitlines(), 1)]
    except OSError as error:
        raise BadPolicy(f"{path} cannot be read: {error.strerror}") from error


def _read_line(text: str, place: str) -> Line:
    try:
        line = Line.model_validate_json(text)
        for phrase in (*line.never, *line.must):
            compile_phrase(phrase)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadPolicy(f"{place}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise BadPolicy(f"{place}: {error}") from error
    return line


def judge(line: Line, answer: str) -> tuple[str, ...]:
    """What is wrong with an answer. A phrase that a negation leads in ("we cannot give you a discount") is not said."""
    said = [(phrase, hit) for phrase in line.never for hit in compile_phrase(phrase).finditer(answer)]
    faults = [f"says {phrase!r}" for phrase, hit in said if not is_negated(answer[max(0, hit.start() - 40) : hit.start()])]
    wanted = [phrase for name in line.must for phrase in GROUPS.get(name, [name])]
    if wanted and not any(compile_phrase(phrase).search(answer) for phrase in wanted):
        faults.append(f"does none of: {', '.join(line.must)}")
    return tuple(faults)


async def _put_all(lines: list[Line], url: str, settings: Settings) -> list[Verdict]:
    async with contextlib.AsyncExitStack() as opened:
        timeout = httpx.Timeout(30, read=None)
        if url:
            http = await opened.enter_async_context(httpx.AsyncClient(base_url=url, timeout=timeout))
        else:
            http = await opened.enter_async_context(_in_process(settings))
        bar = opened.enter_context(Progress(console=err))
        task = bar.add_task("asking", total=len(lines))
        verdicts = []
        for line in lines:
            try:
                answer = await _put(http, line)
                verdicts.append(Verdict(line, answer, judge(line, answer)))
            except (httpx.HTTPError, KeyError) as error:
                verdicts.append(Verdict(line, "", (f"no answer: {error}",)))
            bar.advance(task)
        return verdicts


@contextlib.asynccontextmanager
async def _in_process(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The whole application with its engine, over an empty record that is thrown away."""
    from server.app import open_app

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "adapters").symlink_to((settings.data_dir / "adapters").absolute())
        desk = settings.desk.model_copy(update={**UNLIMITED, "policy": PolicyStore(settings).path})
        settings = settings.model_copy(update={"data_dir": Path(folder), "database_url": "", "desk": desk})
        app = open_app(settings, choose(settings, this_machine(settings.engine.memory_gib)))
        transport = httpx.ASGITransport(app.asgi)
        async with app.asgi.router.lifespan_context(app.asgi), httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            for _ in range(10 * READY_S):
                if app.broken or (await http.get("/health/ready")).is_success:
                    break
                await asyncio.sleep(0.1)
            yield http


async def _put(http: httpx.AsyncClient, line: Line) -> str:
    """The last answer of a conversation with a visitor of its own. Raises httpx.HTTPError, and KeyError when there is no answer."""
    visitor = (await _post(http, "/desk/visitors", {}, "")).json()["token"]
    opened = (await _post(http, "/desk/conversations", {"language": line.language}, visitor)).json()
    answer = ""
    for text in line.ask:
        message = {"text": text, "client_message_id": str(uuid4())}
        reply = await _post(http, f"/desk/conversations/{opened['conversation_id']}/messages", message, visitor)
        done = reply.text.rpartition("event: done\ndata: ")[2] if "event: done\n" in reply.text else "{}"
        answer = json.loads(done.partition("\n")[0])["message"]["text"]
    return answer


async def _post(http: httpx.AsyncClient, path: str, body: dict[str, str], visitor: str) -> httpx.Response:
    """Waits as long as the server's limits ask for."""
    headers = {"authorization": f"Bearer {visitor}"} if visitor else {}
    for _ in range(MAX_WAITS):
        reply = await http.post(path, json=body, headers=headers)
        if reply.status_code != httpx.codes.TOO_MANY_REQUESTS:
            break
        await asyncio.sleep(min(60, int(reply.headers.get("retry-after", 1))))
    return reply.raise_for_status()
