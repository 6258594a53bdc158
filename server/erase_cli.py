"""`kefu erase`: everything of one customer, gone."""

import asyncio
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from server.agent_cli import ACTOR, HEAD_FILE, DataDir
from server.settings import Settings, load_settings

if TYPE_CHECKING:
    from feedback.erase import Erased

out = Console(highlight=False, soft_wrap=True, markup=False)


class EraseFailed(Exception):
    """Not everything was erased; the message is one sentence."""


def erase(
    visitor_id: Annotated[str, typer.Argument(help="The customer's id, as the console shows it above a conversation.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Erase all that a customer said and all that was made of it, for good. A backup that is put back is erased when kefu starts."""
    settings = load_settings({"data_dir": data_dir})
    if not yes:
        typer.confirm(f"Erase everything of {visitor_id}? This cannot be undone.", abort=True)
    erased = asyncio.run(_erase(settings, visitor_id))
    out.print(", ".join(f"{count} {name}" for name, count in sorted(erased.rows.items())) or "Nothing was left.")
    for name in sorted(path.name for path in (*erased.exports, *erased.elsewhere)):
        out.print(f"What was trained on export {name} learnt from them: train it anew.")
    for path in erased.elsewhere:
        out.print(f"Delete yourself: {path} holds their rows, and lies outside the data folder.")


async def _erase(settings: Settings, visitor_id: str) -> "Erased":
    # The database takes a second to import; other commands do not wait for it.
    from feedback.audit import Audit
    from feedback.database import Database, RecordUnavailable
    from feedback.erase import Eraser
    from feedback.record import NotFound

    try:
        with closing(Database.open(settings.database_url, settings.data_dir)) as database:
            return await Eraser(database, Audit(database, settings.data_dir / HEAD_FILE), settings.data_dir).erase(visitor_id, ACTOR)
    except NotFound as error:
        raise EraseFailed(f"there is no visitor {visitor_id}") from error
    except RecordUnavailable as error:
        raise EraseFailed(f"{error}; run the same command again to finish") from error
    except OSError as error:
        raise EraseFailed(f"{Path(str(error.filename or 'a file')).name} cannot be used: {error.strerror}") from error
