"""`kefu adapter`: the LoRA adapters that the model may answer with."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from backends.adapter import AdapterRegistry
from backends.fit import this_machine
from server.models import choose
from server.settings import load_settings

adapter_cli = typer.Typer(no_args_is_help=True, help="LoRA adapters: add, list, remove. A running server follows within a second.")
Name = Annotated[str, typer.Argument(help="Its name: a-z, 0-9 and -.")]
out = Console(highlight=False, soft_wrap=True, markup=False)


@adapter_cli.command("add")
def add(name: Name, source: Path) -> None:
    """Check SOURCE (a PEFT or mlx-lm folder, or a GGUF adapter) against the model that is set, and keep it under NAME."""
    from server.app import BUILT_IN

    settings = load_settings()
    base = choose(settings, this_machine(settings.engine.memory_gib)).engine.model or BUILT_IN
    out.print(f"kept as {_registry().add(name, source, base)}")


@adapter_cli.command("ls")
def ls() -> None:
    """The keys of the adapters there are."""
    out.print("\n".join(_registry().all().values()) or "none")


@adapter_cli.command("rm")
def rm(name: Name) -> None:
    """Remove an adapter. Answers that it is giving are finished first."""
    out.print(f"removed {_registry().remove(name)}")


def _registry() -> AdapterRegistry:
    return AdapterRegistry(load_settings().data_dir / "adapters")
