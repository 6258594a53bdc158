"""`kefu agent` and `kefu audit`: who may use the console, and whether its log is whole."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console

from feedback.credentials import Role, one_time_password
from server.settings import load_settings

if TYPE_CHECKING:
    from feedback.accounts import Accounts
    from feedback.audit import Audit

T = TypeVar("T")
ACTOR, HEAD_FILE = "command line", "audit.head"
agent_cli = typer.Typer(no_args_is_help=True, help="Who may sign in to the console.")
audit_cli = typer.Typer(no_args_is_help=True, help="The console's audit log.")
out = Console(highlight=False, soft_wrap=True, markup=False)

Name = Annotated[str, typer.Argument(help="The name that the agent signs in with.")]
DataDir = Annotated[Path | None, typer.Option(help="The data folder of the server, when it is not the one in the settings.")]
Prompt = Annotated[bool, typer.Option("--prompt", help="Type the password instead of having a one-time password made.")]


class AccountsFailed(Exception):
    """The database cannot be used, or the audit log is not what was written."""


@agent_cli.command("add")
def add(
    name: Name, role: Annotated[Role, typer.Option(help="agent, editor or admin.")], prompt: Prompt = False, data_dir: DataDir = None
) -> None:
    """Let somebody in. Their one-time password is shown once; they choose their own when they first sign in."""
    password = _password(prompt)

    async def work(accounts: "Accounts", audit: "Audit") -> None:
        added = await accounts.add(name, role, password, must_change=not prompt)
        await audit.write(ACTOR, "agent_added", added.id, {"role": role})

    _with_accounts(work, data_dir)
    out.print(f"{name} may sign in as {role}." if prompt else f"{name} may sign in as {role}. One-time password: {password}")


@agent_cli.command("list")
def list_agents(data_dir: DataDir = None) -> None:
    """All agents, with their roles."""
    agents = _with_accounts(lambda accounts, audit: accounts.agents(), data_dir)
    for agent in agents:
        out.print(f"{agent.role:8}{agent.name}{' (disabled)' if agent.disabled_at_ms else ''}")
    if not agents:
        out.print("none; add the first: kefu agent add NAME --role admin")


@agent_cli.command("disable")
def disable(name: Name, undo: Annotated[bool, typer.Option("--undo", help="Let them in again.")] = False, data_dir: DataDir = None) -> None:
    """Sign somebody out everywhere and let them in no more."""

    async def work(accounts: "Accounts", audit: "Audit") -> None:
        await accounts.set_disabled(name, disabled=not undo)
        await audit.write(ACTOR, "agent_enabled" if undo else "agent_disabled", (await accounts.find(name)).id)

    _with_accounts(work, data_dir)
    out.print(f"{name} may sign in again." if undo else f"{name} is signed out and may not sign in. Undo: kefu agent disable {name} --undo")


@agent_cli.command("role")
def set_role(name: Name, role: Role, data_dir: DataDir = None) -> None:
    """Give somebody another role."""

    async def work(accounts: "Accounts", audit: "Audit") -> None:
        before = await accounts.find(name)
        await accounts.set_role(name, role)
        await audit.write(ACTOR, "role_changed", before.id, {"from": before.role, "to": role})

    _with_accounts(work, data_dir)
    out.print(f"{name} is {role} from the next sign-in.")


@agent_cli.command("password")
def set_password(name: Name, prompt: Prompt = False, data_dir: DataDir = None) -> None:
    """Give somebody a new one-time password and sign them out everywhere."""
    password = _password(prompt)

    async def work(accounts: "Accounts", audit: "Audit") -> None:
        await accounts.set_password(name, password, must_change=not prompt)
        await audit.write(ACTOR, "password_reset", (await accounts.find(name)).id)

    _with_accounts(work, data_dir)
    out.print("Changed." if prompt else f"One-time password: {password}")


@audit_cli.command("verify")
def verify(data_dir: DataDir = None) -> None:
    """Read the whole log; the first row that was edited, moved or taken away is named, with status 1."""
    out.print(f"{_with_accounts(lambda accounts, audit: audit.verify(), data_dir)} rows, none changed")


def _password(prompt: bool) -> str:
    return typer.prompt("Password", hide_input=True, confirmation_prompt=True) if prompt else one_time_password()


def _with_accounts(work: "Callable[[Accounts, Audit], Awaitable[T]]", data_dir: Path | None) -> T:
    # The database takes a second to import; other commands do not wait for it.
    from feedback.accounts import Accounts
    from feedback.audit import Audit, BrokenChain
    from feedback.database import Database, RecordUnavailable

    settings = load_settings({"data_dir": data_dir})

    async def run() -> T:
        with closing(Database.open(settings.database_url, settings.data_dir)) as database:
            return await work(Accounts(database), Audit(database, settings.data_dir / HEAD_FILE))

    try:
        return asyncio.run(run())
    except (BrokenChain, RecordUnavailable) as error:
        raise AccountsFailed(str(error)) from error
