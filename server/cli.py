"""The command line: `kefu serve` and the commands around it."""

import sys
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from backends.catalog import UnknownModel, find
from backends.download import PullFailed
from backends.fit import this_machine
from backends.protocol import AdapterRefused
from backends.store import BrokenManifest
from feedback.credentials import AccountError
from feedback.judge import JudgeFailed
from feedback.training.job import RoundRefused, TrainingFailed
from server import models_cli
from server.adapter_cli import adapter_cli
from server.agent_cli import AccountsFailed, agent_cli, audit_cli
from server.desk.policy_file import BadPolicy
from server.desk.tools_file import BadTools
from server.erase_cli import EraseFailed, erase
from server.export_cli import ExportFailed, export
from server.knowledge_cli import KnowledgeFailed, knowledge_cli
from server.logging import configure_logging
from server.models import OFFERED, Chosen, ModelUnavailable, choose, offer
from server.policy_cli import policy_cli
from server.ports import PortTaken, bind
from server.round_cli import round_cli
from server.service import Service, ServiceFailed
from server.settings import BadSettings, Settings, is_loopback, load_settings
from server.tools_cli import tools_cli

if TYPE_CHECKING:
    from server.doctor import Finding

ADVICE = "Check the model, or leave --model out to serve the built-in model."
EXIT_BROKEN, EXIT_USAGE = 1, 2


class _OneSentence(TyperGroup):
    """What a command raises on purpose leaves as one sentence and a status."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except (AccountError, AdapterRefused, BadSettings, RoundRefused, UnknownModel) as error:
            _fail(f"{error}.", EXIT_USAGE)
        except (
            AccountsFailed,
            BadPolicy,
            BadTools,
            BrokenManifest,
            EraseFailed,
            ExportFailed,
            JudgeFailed,
            KnowledgeFailed,
            ModelUnavailable,
            PullFailed,
            ServiceFailed,
            TrainingFailed,
        ) as error:
            _fail(f"{str(error).rstrip('.')}.", EXIT_BROKEN)


cli = typer.Typer(cls=_OneSentence, no_args_is_help=True, add_completion=False, help="客服: a local chat server for customer service.")
key_cli = typer.Typer(no_args_is_help=True, help="API keys for /v1.")
service_cli = typer.Typer(no_args_is_help=True, help="Serve whenever you are logged in (launchd or systemd).")
out, err = Console(), Console(stderr=True)


def main() -> None:
    """The console script."""
    cli()


@cli.callback(invoke_without_command=True)
def _root(show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if show_version:
        out.print(f"kefu {version('kefu')}", highlight=False)
        raise typer.Exit


@cli.command()
def serve(
    model: Annotated[Path | None, typer.Option(help="A GGUF file, an MLX folder or a pulled model; else kefu-mini.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; anything but loopback needs an API key.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where conversations and signals are kept.")] = None,
) -> None:
    """Serve the chat page and the OpenAI API until interrupted.

    Everything else is set by KEFU_* variables (KEFU_SERVER__PORT=8001) or in kefu.toml.
    """
    settings = load_settings({"server": {"host": host, "port": port}, "engine": {"model": model}, "data_dir": data_dir})
    configure_logging(settings.log_level)
    chosen = choose(_offered(settings), this_machine(settings.engine.memory_gib))
    try:
        sockets = bind(settings.server.host, settings.server.port)
        if settings.console.port:
            sockets += bind(settings.console.host, settings.console.port)
    except PortTaken as error:
        _fail(f"{error}; stop that, or choose another with --port (the console's: console.port).", EXIT_USAGE)
    except OSError as error:
        _fail(f"cannot listen on {settings.server.host}: {error.strerror}.", EXIT_USAGE)
    name, port = sockets[0].getsockname()[:2]
    with ExitStack() as opened:
        for sock in sockets:
            opened.enter_context(sock)
        _run(settings, chosen, sockets, f"http://{f'[{name}]' if ':' in name else name}:{port}")


def _offered(settings: Settings) -> Settings:
    """On a first run at a terminal of a Mac with room: ask whether to get QwQ. Everywhere else the built-in model serves at once."""
    fit = offer(settings, this_machine(settings.engine.memory_gib)) if sys.stdin.isatty() else None
    if fit is None or not typer.confirm(f"This Mac has room for {OFFERED} ({fit}). Download it now?", default=False):
        return settings
    models_cli.fetch(settings, find(OFFERED), "mlx")
    return settings.model_copy(update={"engine": settings.engine.model_copy(update={"model": Path(OFFERED)})})


for _command, _name in (
    (models_cli.models, "models"),
    (models_cli.pull_model, "pull"),
    (models_cli.verify, "verify"),
    (models_cli.remove, "rm"),
):
    cli.command(_name)(_command)


@cli.command()
def doctor(model: Annotated[Path | None, typer.Option(help="Examine this model instead of the one in the settings.")] = None) -> None:
    """Examine this machine: one line a finding, with what to do.

    The exit status names the first serious one: 10 memory, 11 disk, 12 port, 13 software, 14 power, 15 clock, 16 engine. 3 is warnings.
    """
    import asyncio

    from server.app import engine_options
    from server.doctor import decode, examine, exit_status

    settings = load_settings({"engine": {"model": model}})
    machine = this_machine(settings.engine.memory_gib)
    findings = []
    for finding in examine(settings, machine):
        findings.append(finding)
        _show(finding)
    if not any(finding.topic == "memory" and finding.level == "bad" for finding in findings):
        findings.append(asyncio.run(decode(engine_options(choose(settings, machine).engine))))
        _show(findings[-1])
    raise typer.Exit(exit_status(findings))


@service_cli.command("install")
def install() -> None:
    """Serve from now on, and at every login, with the kefu.toml of this folder."""
    settings, service = load_settings(), Service(Path.home())
    choose(settings, this_machine(settings.engine.memory_gib))
    log = (settings.data_dir / "service.log").absolute()
    service.install((sys.executable, "-P", "-m", "server.cli", "serve"), Path.cwd(), log)
    out.print(f"Installed as {service.path}, {service.status()}. KEFU_* variables do not reach it: use kefu.toml.", soft_wrap=True)


@service_cli.command("status")
def status() -> None:
    """Say whether the service runs."""
    out.print(Service(Path.home()).status())


@service_cli.command("uninstall")
def uninstall() -> None:
    """Stop the service and forget it."""
    out.print("Uninstalled." if Service(Path.home()).uninstall() else "It was not installed.")


@key_cli.command("new")
def new() -> None:
    """Make an API key. It is shown once; the server keeps only its hash."""
    from server.auth import new_key

    key, key_hash = new_key()
    out.print(f"Key, shown this once:   {key}", highlight=False, soft_wrap=True)
    out.print(f"Let the server know it: KEFU_SERVER__API_KEYS={key_hash}", highlight=False, soft_wrap=True)


cli.command("export")(export)
cli.command("erase")(erase)
cli.add_typer(key_cli, name="key")
cli.add_typer(service_cli, name="service")
cli.add_typer(adapter_cli, name="adapter")
cli.add_typer(agent_cli, name="agent")
cli.add_typer(audit_cli, name="audit")
cli.add_typer(policy_cli, name="policy")
cli.add_typer(tools_cli, name="tools")
cli.add_typer(knowledge_cli, name="knowledge")
cli.add_typer(round_cli, name="round")


def _run(settings: Settings, chosen: Chosen, sockets: list[socket], url: str) -> None:
    # These take seconds to import; a port in use or a bad setting is told before.
    from backends.protocol import ModelLoadError
    from feedback.database import RecordUnavailable
    from server.app import engine_options, open_app
    from server.serving import make_server

    try:
        app = open_app(settings, chosen)
    except ModelLoadError as error:
        _fail(f"{error}. {ADVICE}", EXIT_BROKEN)
    except RecordUnavailable as error:
        _fail(f"{error}. Choose another folder with --data-dir, or free this one.", EXIT_BROKEN)
    server = make_server(app, settings.server)
    name = settings.upstream.base_url or chosen.name or engine_options(chosen.engine).name
    out.print(f"kefu answers at {url} (API: {url}/v1) with {name}. Ctrl+C ends it.", highlight=False, soft_wrap=True)
    out.print(f"The team's console: {_console_url(settings, url)}", highlight=False, soft_wrap=True)
    server.run(sockets=sockets)
    if app.broken:
        _fail(f"{app.broken[0]}. {ADVICE}", EXIT_BROKEN)


def _console_url(settings: Settings, url: str) -> str:
    if settings.console.port:
        return f"http://{settings.console.host}:{settings.console.port}/console"
    return f"{url}/console" if is_loopback(settings.server.host) else "not served where customers come in; set console.port"


def _show(finding: "Finding") -> None:
    mark = {"ok": "ok  ", "warn": "WARN", "bad": "BAD "}[finding.level]
    out.print(f"{mark} {finding.said}{f': {finding.do}' if finding.do else ''}", highlight=False, soft_wrap=True, markup=False)


def _fail(sentence: str, status: int) -> NoReturn:
    err.print(f"kefu: {sentence}", highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(status)


if __name__ == "__main__":
    main()
