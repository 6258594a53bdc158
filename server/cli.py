"""The command line: `kefu serve`, `kefu key new`."""

from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from socket import socket
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from server.logging import configure_logging
from server.ports import PortTaken, bind
from server.settings import BadSettings, Settings, load_settings

ADVICE = "Check the file, or leave --model out to serve the built-in model."
EXIT_BROKEN, EXIT_USAGE = 1, 2

cli = typer.Typer(no_args_is_help=True, add_completion=False, help="客服: a local chat server for customer service.")
key_cli = typer.Typer(no_args_is_help=True, help="API keys for /v1.")
cli.add_typer(key_cli, name="key")
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
    model: Annotated[Path | None, typer.Option(help="A GGUF file; without it the built-in kefu-mini answers.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; anything but loopback needs an API key.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where conversations and signals are kept.")] = None,
) -> None:
    """Serve the chat page and the OpenAI API until interrupted.

    Everything else is set by KEFU_* variables (KEFU_SERVER__PORT=8001) or in kefu.toml.
    """
    try:
        settings = load_settings({"server": {"host": host, "port": port}, "engine": {"model": model}, "data_dir": data_dir})
        configure_logging(settings.log_level)
        sockets = bind(settings.server.host, settings.server.port)
    except BadSettings as error:
        _fail(f"{error}.", EXIT_USAGE)
    except PortTaken as error:
        _fail(f"{error}; stop that, or choose another with --port.", EXIT_USAGE)
    except OSError as error:
        _fail(f"cannot listen on {settings.server.host}: {error.strerror}.", EXIT_USAGE)
    name, port = sockets[0].getsockname()[:2]
    with ExitStack() as opened:
        for sock in sockets:
            opened.enter_context(sock)
        _run(settings, sockets, f"http://{f'[{name}]' if ':' in name else name}:{port}")


@key_cli.command("new")
def new() -> None:
    """Make an API key. It is shown once; the server keeps only its hash."""
    from server.auth import new_key

    key, key_hash = new_key()
    out.print(f"Key, shown this once:   {key}", highlight=False, soft_wrap=True)
    out.print(f"Let the server know it: KEFU_SERVER__API_KEYS={key_hash}", highlight=False, soft_wrap=True)


def _run(settings: Settings, sockets: list[socket], url: str) -> None:
    # These take seconds to import; a port in use or a bad setting is told before.
    from backends.llamacpp.model import check_gguf
    from backends.llamacpp.tokenizer import LlamaTokenizer
    from backends.protocol import ModelLoadError
    from backends.supervisor import Supervisor
    from feedback.database import RecordUnavailable
    from server.app import create_app, engine_options
    from server.serving import make_server

    options = engine_options(settings.engine)
    try:
        check_gguf(Path(options.path))
        supervisor = Supervisor(options, settings.engine.max_waiting)
        app = create_app(settings, supervisor, partial(LlamaTokenizer, options.path))
    except ModelLoadError as error:
        _fail(f"{error}. {ADVICE}", EXIT_BROKEN)
    except RecordUnavailable as error:
        _fail(f"{error}. Choose another folder with --data-dir, or free this one.", EXIT_BROKEN)
    server = make_server(app, settings.server)
    out.print(f"kefu answers at {url} (API: {url}/v1) with {options.name}. Ctrl+C ends it.", highlight=False, soft_wrap=True)
    server.run(sockets=sockets)
    if app.broken:
        _fail(f"{app.broken[0]}. {ADVICE}", EXIT_BROKEN)


def _fail(sentence: str, status: int) -> NoReturn:
    err.print(f"kefu: {sentence}", highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(status)
