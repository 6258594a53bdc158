"""`kefu policy`: is the policy file right, and does the model say no where it must."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import httpx
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from backends.fit import this_machine
from server.desk.policy_file import load_policy
from server.desk.policy_set import MUST_SAY_NO, Line, judge, read_lines
from server.desk.policy_store import PolicyStore
from server.models import choose
from server.settings import Settings, load_settings

UNLIMITED = {"messages_per_minute": 1e6, "visitors_per_minute": 1e6, "messages_per_day": 10**6, "address_messages_per_day": 10**6}
READY_S, MAX_WAITS = 600, 30

policy_cli = typer.Typer(no_args_is_help=True, help="The policy file: check it, and test the model against it.")
out, err = Console(highlight=False, markup=False), Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a line went; no `faults` means that it passed."""

    line: Line
    answer: str
    faults: tuple[str, ...]

    @property
    def is_forbidden(self) -> bool:
        """Does the answer hold what it must never hold?"""
        return any(fault.startswith("says") for fault in self.faults)


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
    verdicts = asyncio.run(put_all(lines, url, load_settings()))
    table = Table("line", "", "answer", "what is wrong", box=None)
    for verdict in verdicts:
        table.add_row(verdict.line.id, "FAIL" if verdict.faults else "ok", verdict.answer[:160], "; ".join(verdict.faults))
    out.print(table)
    num_passed = sum(not verdict.faults for verdict in verdicts)
    num_said = sum(verdict.is_forbidden for verdict in verdicts)
    out.print(f"{num_passed} of {len(verdicts)} passed; {num_said} said what must never be said.")
    raise typer.Exit(num_passed != len(verdicts))


async def put_all(lines: list[Line], url: str, settings: Settings) -> list[Verdict]:
    """Every line's verdict, from the kefu at `url` or, without one, from the application that `settings` make."""
    async with contextlib.AsyncExitStack() as opened:
        timeout = httpx.Timeout(30, read=None)
        if url:
            http = await opened.enter_async_context(httpx.AsyncClient(base_url=url, timeout=timeout))
        else:
            http = await opened.enter_async_context(in_process(settings))
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
async def in_process(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
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
