"""`kefu knowledge`: what the desk knows, on the command line."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import httpx
import typer
from rich.console import Console
from rich.progress import track

from backends.protocol import EngineError, ModelLoadError
from feedback.database import Database, RecordUnavailable
from feedback.gaps import Gaps
from feedback.importers import MAX_BYTES, READERS, ImportRefused, read, read_file
from feedback.knowledge import Draft, Knowledge, Passage
from feedback.record import NotFound
from feedback.retrieval import Index
from server.settings import load_settings

MAX_FILES = 10_000
FETCH_TIMEOUT_S = 20.0
KINDS = {"text/html": ".html", "application/xhtml+xml": ".html", "text/markdown": ".md", "text/plain": ".txt", "text/csv": ".csv"}
KINDS["application/pdf"] = ".pdf"
T = TypeVar("T")

knowledge_cli = typer.Typer(no_args_is_help=True, help="Articles that answers rest on. A running server follows at the next question.")
out = Console(highlight=False, soft_wrap=True, markup=False)


class KnowledgeFailed(Exception):
    """Nothing was done; the message is one sentence."""


@knowledge_cli.command("import")
def import_(path: Annotated[Path, typer.Argument(help="A file, a folder, or a .urls file with one address a line.")]) -> None:
    """Read articles from PATH; what came from the same files before is replaced."""
    tally, refused, sources = Counter[str](), list[str](), list(_sources(path))

    async def work(database: Database) -> None:
        for source, drafts in track(sources, "reading", console=out, transient=True, disable=len(sources) < 2):
            try:
                put = await Knowledge(database).put(source, drafts())
            except ImportRefused as error:
                refused.append(str(error))
            else:
                tally.update(new=put.num_new, changed=put.num_changed, same=put.num_same, gone=put.num_gone)

    _with_database(work)
    for sentence in refused:
        out.print(f"left out: {sentence}.")
    if refused and len(refused) == len(sources):
        raise KnowledgeFailed("nothing was imported")
    out.print(f"{tally['new']} new, {tally['changed']} changed, {tally['same']} as before, {tally['gone']} gone.")


@knowledge_cli.command("list")
def list_() -> None:
    """The articles there are."""
    articles = _with_database(lambda database: Knowledge(database).articles())
    out.print(f"{'article':26}{'lang':6}{'passages':>9}  {'title':48} source")
    for one in articles:
        out.print(f"{one.id:26}{one.language:6}{one.num_passages:>9}  {one.title[:46]:48} {one.source}")
    out.print(
        f"\n{len(articles)} articles."
        if articles
        else "\nNone: the demo shop's passages are used. `kefu knowledge import PATH` adds yours."
    )


@knowledge_cli.command("rm")
def rm(article_id: Annotated[str, typer.Argument(help="Its id, from `kefu knowledge list`.")]) -> None:
    """Delete an article. What was cited from it stays readable in its conversations."""
    try:
        _with_database(lambda database: Knowledge(database).remove(article_id))
    except NotFound as error:
        raise KnowledgeFailed(f"there is no article {article_id}") from error
    out.print("Deleted.")


@knowledge_cli.command("search")
def search(question: str, limit: Annotated[int, typer.Option(min=1, max=50)] = 5) -> None:
    """The passages that speak to QUESTION best, with their scores: from 1.0 on it fits."""
    from server.app import find_vectors

    passages = _with_database(lambda database: Knowledge(database).passages())
    index, vector = Index(passages), None
    try:
        if vectors := asyncio.run(find_vectors(load_settings(), index.texts, [question])) if passages else None:
            index, vector = index.embedded(vectors[0]), vectors[1][0]
    except (EngineError, ModelLoadError) as error:
        raise KnowledgeFailed(str(error)) from error
    found = index.search(question, limit, vector)
    for hit in found.hits:
        one: Passage = passages[hit.number]
        out.print(f"{hit.score:6.2f}  {one.id}  {one.title}: {one.text[:90]}")
    out.print("The first fits." if found.fits else "Nothing fits.")


@knowledge_cli.command("gaps")
def gaps(limit: Annotated[int, typer.Option(min=1, max=200)] = 10) -> None:
    """What customers asked and no passage answered: articles worth writing, the most asked first."""
    for gap in _with_database(lambda database: Gaps(database).largest(limit)):
        out.print(f"{len(gap.questions):4} times  {' | '.join(question[:80] for question in gap.questions[:3])}")


def _with_database(work: Callable[[Database], Awaitable[T]]) -> T:
    settings = load_settings()
    try:
        database = Database.open(settings.database_url, settings.data_dir)
        try:

            async def done() -> T:
                return await work(database)

            return asyncio.run(done())
        finally:
            database.close()
    except RecordUnavailable as error:
        raise KnowledgeFailed(str(error)) from error


def _sources(path: Path) -> Iterator[tuple[str, Callable[[], list[Draft]]]]:
    """Each source's name, and how to read it. A link is not followed out of the folder."""
    if path.suffix == ".urls":
        addresses = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        yield from ((each, lambda each=each: _fetched(each)) for each in addresses if each and not each.startswith("#"))
    elif path.is_file():
        yield path.name, lambda: read_file(path)
    elif path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in READERS and file.is_file() and not file.is_symlink()]
        if not files or len(files) > MAX_FILES:
            raise KnowledgeFailed(f"{path} holds {len(files)} files that can be imported; 1 to {MAX_FILES:,} are taken at once")
        yield from ((file.relative_to(path).as_posix(), lambda file=file: read_file(file)) for file in files)
    else:
        raise KnowledgeFailed(f"there is no {path}")


def _fetched(address: str) -> list[Draft]:
    if not address.startswith(("http://", "https://")):
        raise ImportRefused(f"{address} is no http address")
    data = bytearray()
    try:
        with httpx.stream("GET", address, timeout=FETCH_TIMEOUT_S, follow_redirects=True) as response:
            response.raise_for_status()
            ending = KINDS.get(response.headers.get("content-type", "").partition(";")[0].strip().lower())
            if ending is None:
                raise ImportRefused(f"{address} is none of the kinds that can be imported")
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise ImportRefused(f"{address} is larger than {MAX_BYTES // 1_000_000} MB")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ImportRefused(f"{address} cannot be fetched") from error
    return read(f"{address}{ending}", bytes(data))
