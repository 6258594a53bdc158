"""`kefu models`, `pull`, `verify` and `rm`: the catalogue on the command line."""

from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from backends.catalog import Entry, Format, catalog, find
from backends.download import Link, PullFailed, pull
from backends.fit import Fit, this_machine
from backends.store import Store
from server.models import default_format
from server.settings import Settings, load_settings

TRUST = {
    "pinned": "its hash is pinned in kefu's catalogue",
    "first use": "no hash of it was pinned: the first download is trusted and recorded, later ones must equal it",
}

Name = Annotated[str, typer.Argument(help="A name from `kefu models`.")]
Kind = Annotated[Format | None, typer.Option("--format", help="Which build; by default the one for this machine.")]
out = Console(highlight=False, soft_wrap=True)


def models() -> None:
    """List the models there are, what fits this machine, and what is here."""
    settings = load_settings()
    machine, store = this_machine(settings.engine.memory_gib), Store(settings.models.dir)
    kind = default_format(machine)
    out.print(f"{'model':24}{'download':>9}{'room here':>17}  {'here':5}{'hash':10} about")
    for entry in catalog().values():
        fit = Fit(entry.weight_bytes(kind), entry.kv_bytes_per_token(), machine.budget_bytes)
        size = f"{'' if entry.source(kind).size else '~'}{fit.weight_bytes / 1e9:.1f} GB"
        room = f"{fit.num_tokens:,} tokens" if fit.holds() else "does not fit"
        trust = "pinned" if entry.source(kind).sha256 else "first use"
        out.print(f"{entry.name:24}{size:>9}{room:>17}  {'+'.join(store.formats(entry)):5}{trust:10} {entry.about}")
    out.print(f"\nThis machine spares {machine.budget_bytes / 1e9:.1f} GB for weights and KV. Models lie in {store.folder}.")
    out.print(f"First use: {TRUST['first use']}.")


def pull_model(name: Name, kind: Kind = None) -> None:
    """Download a model; interrupted, the same command goes on where it stopped."""
    fetch(load_settings(), find(name), kind or default_format(this_machine()))


def fetch(settings: Settings, entry: Entry, kind: Format) -> None:
    """Pull with a progress bar, and say what the hashes are worth."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out) as bar:
        task = bar.add_task(f"asking for {entry.name}", total=None)
        link = Link(settings.models.url, settings.models.stall_s)
        manifest = pull(
            Store(settings.models.dir),
            entry,
            kind,
            link,
            lambda doing, n, total: bar.update(task, description=doing, completed=n, total=total),
        )
    size = sum(file.size for file in manifest.files.values())
    out.print(f"{entry.name} ({kind}) is here: {size / 1e9:.1f} GB, revision {manifest.revision[:12]}; {TRUST[manifest.trust]}.")


def verify(name: Name, kind: Kind = None) -> None:
    """Read every file of a pulled model again and compare its SHA-256 with the manifest."""
    store, entry = Store(load_settings().models.dir), find(name)
    kinds = [each for each in store.formats(entry) if kind in (None, each)]
    if not kinds:
        raise PullFailed(f"{entry.name} is not on this machine; get it with `kefu pull {entry.name}`")
    num_faults = 0
    for each in kinds:
        for file, fault in store.faults(entry, each):
            num_faults += bool(fault)
            out.print(f"{'BAD' if fault else 'ok '} {entry.name}-{each}/{file} {fault}".rstrip())
        if manifest := store.manifest(entry, each):
            out.print(f"    {manifest.repo} {manifest.revision[:12]}: {TRUST[manifest.trust]}")
    if num_faults:
        raise PullFailed(f"{num_faults} of the files of {entry.name} are wrong: `kefu rm {entry.name}` and pull it again")


def remove(
    name: Name, kind: Kind = None, forget: Annotated[bool, typer.Option("--forget", help="The recorded hashes, too.")] = False
) -> None:
    """Delete a pulled model. Its hashes stay recorded, so that another pull must equal it."""
    store, entry, freed = Store(load_settings().models.dir), find(name), 0
    for each in [kind] if kind else get_args(Format):
        freed += store.remove(entry, each)
        if forget:
            store.place(entry, each, ".json").unlink(missing_ok=True)
    out.print(f"{freed / 1e9:.1f} GB freed.")
