"""Knowledge: what the shop knows, as articles cut into passages; nothing that an answer ever saw is overwritten."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, and_, func, insert, select, update

from feedback.database import Database
from feedback.record import NotFound, now_ms
from feedback.tables import article, passage

# The source of articles that somebody wrote in the console.
BY_HAND = "console"


class Outdated(Exception):
    """What was edited is not what is there now: saving it would undo what somebody else did."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of an article that can be cited. `questions` are what customers ask that it answers; `version` is a hash of the rest."""

    id: str
    title: str
    text: str
    questions: tuple[str, ...]
    language: str
    version: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A passage before it is kept."""

    title: str
    text: str
    questions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """An article as an importer reads it."""

    title: str
    language: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Article:
    """One row of `kefu knowledge list`."""

    id: str
    title: str
    language: str
    source: str
    version: str
    num_passages: int
    updated_at_ms: int


@dataclass(slots=True)
class Tally:
    """What an import changed, in articles."""

    num_new: int = 0
    num_changed: int = 0
    num_same: int = 0
    num_gone: int = 0
    _seen: set[str] = field(default_factory=set)


class Knowledge:
    """The articles in the database. Methods that write return after COMMIT; all raise RecordUnavailable when the database fails."""

    def __init__(self, database: Database, clock: Callable[[], int] = now_ms) -> None:
        self._database = database
        self._clock = clock

    async def put(self, source: str, drafts: Sequence[Draft]) -> Tally:
        """Make `drafts` all that is known from `source`, in one transaction: what stood there before and does not now is deleted."""

        def work(connection: Connection) -> Tally:
            tally, now = Tally(), self._clock()
            for draft in drafts:
                _keep(connection, source, draft, tally, now)
            there = select(article.c.id).where(article.c.source == source, ~article.c.deleted)
            gone = [row.id for row in connection.execute(there) if row.id not in tally._seen]
            for article_id in gone:
                _delete(connection, article_id, now)
            tally.num_gone = len(gone)
            return tally

        return await self._database.write(work)

    async def remove(self, article_id: str) -> None:
        """Delete an article; what was cited from it stays readable. Raises NotFound."""

        def work(connection: Connection) -> None:
            known = select(article.c.id).where(article.c.id == article_id, ~article.c.deleted)
            if connection.execute(known).first() is None:
                raise NotFound("no such article")
            _delete(connection, article_id, self._clock())

        await self._database.write(work)

    async def save(self, draft: Draft, replaces_id: str = "", version: str = "") -> str:
        """Keep one article, in place of another where that is named; its id. Others of its source and title stay.

        Raises NotFound, and Outdated where the other one is no longer the `version` that was edited.
        """

        def work(connection: Connection) -> str:
            now, live = self._clock(), select(*article.c["id", "source", "version"]).where(~article.c.deleted)
            known = {row.id: row for row in connection.execute(live)}
            sources = {row.id: row.source for row in known.values()}
            if replaces_id and replaces_id not in known:
                raise NotFound("no such article")
            if replaces_id and known[replaces_id].version != version:
                raise Outdated("somebody else has saved this article since it was opened")
            others = set(sources) - {replaces_id}
            tally = Tally(_seen=set(others))
            _keep(connection, sources.get(replaces_id, BY_HAND), draft, tally, now)
            [kept] = tally._seen - others
            if replaces_id and kept != replaces_id:
                _delete(connection, replaces_id, now)
            return kept

        return await self._database.write(work)

    async def article(self, article_id: str) -> tuple[Article, list[Passage]]:
        """An article and its passages in order. Raises NotFound."""
        found = next((one for one in await self.articles() if one.id == article_id), None)
        if found is None:
            raise NotFound("no such article")
        return found, await self.passages(article_id)

    async def articles(self) -> list[Article]:
        """What is known now, by source and title."""
        count = func.count(passage.c.id).label("num_passages")
        columns = article.c["id", "title", "language", "source", "version", "updated_at_ms"]
        joined = article.outerjoin(passage, and_(passage.c.article_id == article.c.id, passage.c.current))
        rows = (
            select(*columns, count)
            .select_from(joined)
            .where(~article.c.deleted)
            .group_by(*columns)
            .order_by(article.c.source, article.c.title)
        )
        return await self._database.read(lambda connection: [Article(**row) for row in connection.execute(rows).mappings()])

    async def passages(self, article_id: str = "") -> list[Passage]:
        """Every passage that may be shown now, or those of one article, in an order that does not change while they do not."""
        rows = select(*passage.c["id", "title", "text", "questions", "language", "version"]).where(passage.c.current)
        rows = (rows.where(passage.c.article_id == article_id) if article_id else rows).order_by(passage.c.article_id, passage.c.ordinal)

        def work(connection: Connection) -> list[Passage]:
            return [Passage(**{**row, "questions": tuple(row["questions"])}) for row in connection.execute(rows).mappings()]

        return await self._database.read(work)

    async def state(self) -> tuple[int, int]:
        """Differs whenever `passages` does; cheap enough to ask before every answer."""
        newest = select(func.count(), func.coalesce(func.max(article.c.updated_at_ms), 0)).select_from(article)

        def work(connection: Connection) -> tuple[int, int]:
            count, updated_at_ms = connection.execute(newest).one()
            return int(count), int(updated_at_ms)

        return await self._database.read(work)


def _keep(connection: Connection, source: str, draft: Draft, tally: Tally, now: int) -> None:
    article_id = f"art_{_sha256(source, draft.title)[:20]}"
    while article_id in tally._seen:  # two of one title in one source
        article_id = f"art_{_sha256(article_id)[:20]}"
    tally._seen.add(article_id)
    versions = [_sha256(piece.title, piece.text, *piece.questions) for piece in draft.pieces]
    version = _sha256(draft.language, *versions)
    known = connection.execute(select(article).where(article.c.id == article_id)).mappings().first()
    if known and known["version"] == version and not known["deleted"]:
        tally.num_same += 1
        return
    if known:
        # Milliseconds may repeat, and a clock may be set back; `state` must differ all the same.
        changed = {"language": draft.language, "version": version, "deleted": False, "updated_at_ms": _later(connection, now)}
        connection.execute(update(article).where(article.c.id == article_id).values(**changed))
        connection.execute(update(passage).where(passage.c.article_id == article_id).values(current=False))
        tally.num_changed += 1
    else:
        times = {"created_at_ms": now, "updated_at_ms": _later(connection, now)}
        row = {"id": article_id, "title": draft.title, "language": draft.language, "source": source, "version": version, "deleted": False}
        connection.execute(insert(article).values(**row, **times))
        tally.num_new += 1
    for ordinal, (piece, piece_version) in enumerate(zip(draft.pieces, versions, strict=True), 1):
        _show(connection, article_id, ordinal, draft.language, piece, piece_version)


def _show(connection: Connection, article_id: str, ordinal: int, language: str, piece: Piece, version: str) -> None:
    passage_id = f"{article_id}.{ordinal}"
    same = and_(passage.c.id == passage_id, passage.c.version == version)
    if connection.execute(update(passage).where(same).values(current=True, language=language)).rowcount:
        return
    said = {"title": piece.title, "text": piece.text, "questions": list(piece.questions), "language": language}
    connection.execute(insert(passage).values(id=passage_id, version=version, article_id=article_id, ordinal=ordinal, current=True, **said))


def _delete(connection: Connection, article_id: str, now: int) -> None:
    gone = {"deleted": True, "updated_at_ms": _later(connection, now)}
    connection.execute(update(article).where(article.c.id == article_id).values(**gone))
    connection.execute(update(passage).where(passage.c.article_id == article_id).values(current=False))


def _later(connection: Connection, now: int) -> int:
    return max(now, 1 + int(connection.execute(select(func.coalesce(func.max(article.c.updated_at_ms), 0))).scalar_one()))


def _sha256(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
