"""Who is erased is nowhere any more: no row, no page, no log, no export, and not after a backup was put back."""

import json
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import JSON, Boolean, Connection, Float, Integer, LargeBinary, String, Table, UniqueConstraint, func, insert, select, text

from feedback.audit import Audit
from feedback.database import Database
from feedback.erase import STALE, TOMBSTONES, Eraser, reached
from feedback.evaluation import Change, read_changes, write_changes
from feedback.export import Rules, read_snapshot, select_examples
from feedback.pairs import Gates
from feedback.record import Conversation, Message, NotFound, Record, new_id
from feedback.rounds import Rounds
from feedback.tables import Logprobs, TokenIds, metadata, visitor
from feedback.training.rows import snapshot_sha256
from feedback.writers import Shop, conversation_hash, write_export
from tests.feedback.conftest import Clock
from tests.feedback.shopper import worked_example

pytestmark = pytest.mark.anyio
PHONE, WORDS = "13912345678", "Großmutters Teekanne 祖母的茶壶"
SECRETS = (PHONE, WORDS, "Teekanne", "祖母的茶壶")
# Whatever is not reached from a visitor or conversation must stand here, and hold no word of a customer.
NOT_OF_CUSTOMERS = {"agent", "session", "audit", "article", "passage", "canned_answer", "round"}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir(exist_ok=True)
    return tmp_path / "data"


@pytest.fixture
def eraser(database: Database, data_dir: Path, clock: Clock) -> Eraser:
    return Eraser(database, Audit(database, data_dir / "audit.head"), data_dir, clock)


def found_in(folder: Path) -> list[str]:
    """Which files hold one of the secrets, as UTF-8 or as JSON spells it."""
    spelt = {form for secret in SECRETS for form in (secret.encode(), json.dumps(secret)[1:-1].encode())}
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.name for path in files if any(form in path.read_bytes() for form in spelt))


def _value(table: Table, column: str, made: Mapping[str, Mapping[str, object]], suffix: str) -> object:
    """Something that fits the column, with a secret in it wherever text goes."""
    one = table.c[column]
    if one.foreign_keys:
        target = next(iter(one.foreign_keys)).column
        return None if target.table is table else made[target.table.name][target.name]
    if isinstance(one.type, TokenIds | Logprobs):
        return [1]
    values: dict[type, object] = {Boolean: False, Float: 1.0, Integer: 1, JSON: {"phone": f"{PHONE} {WORDS}"}, LargeBinary: PHONE.encode()}
    for kind, value in values.items():
        if isinstance(one.type, kind):
            return value
    length = one.type.length if isinstance(one.type, String) else None
    return f"{suffix}{PHONE} {WORDS}"[: length or None]


def fill(connection: Connection, visitor_id: str) -> dict[str, dict[str, object]]:
    """A row in every table that is reached from a visitor."""
    made: dict[str, dict[str, object]] = {}
    for table in reached({visitor: visitor.c.id == visitor_id}):
        row = {each.name: _value(table, each.name, made, f"{table.name} {visitor_id} ") for each in table.columns}
        if table.columns.keys()[0] == "seq" and table.c.seq.primary_key:
            row["seq"] = connection.execute(select(func.coalesce(func.max(table.c.seq), 0) + 1)).scalar_one()
        made[table.name] = row | ({"id": visitor_id} if table is visitor else {})
        connection.execute(insert(table).values(**made[table.name]))
    return made


async def counts(database: Database) -> dict[str, int]:
    """How many rows each table has that is reached from a visitor."""
    tables = reached({visitor: visitor.c.id == ""})
    return await database.read(lambda c: {each.name: c.execute(select(func.count()).select_from(each)).scalar_one() for each in tables})


def test_every_table_is_reached_from_a_visitor_or_is_known_to_hold_nothing_of_one() -> None:
    names = {table.name for table in reached({visitor: visitor.c.id == ""})}
    assert {"conversation", "message", "completion", "citation", "signal", "pair", "review", "handoff", "retrieval"} <= names
    assert {table.name for table in metadata.sorted_tables} - names <= NOT_OF_CUSTOMERS


def test_every_key_that_erasing_has_to_look_up_is_indexed() -> None:
    missing = []
    for table in reached({visitor: visitor.c.id == ""}):
        leading = {table.primary_key.columns[0].name} | {index.columns[0].name for index in table.indexes}
        leading |= {each.columns[0].name for each in table.constraints if isinstance(each, UniqueConstraint)}
        missing += [f"{table.name}.{key.parent.name}" for key in table.foreign_keys if key.parent.name not in leading]
    assert missing == []


async def test_a_row_in_every_table_goes_and_other_visitors_keep_theirs(database: Database, eraser: Eraser, data_dir: Path) -> None:
    await database.write(lambda connection: fill(connection, "vis_gone"))
    before = await counts(database)
    await database.write(lambda connection: fill(connection, "vis_stays"))
    both = await counts(database)
    assert set(before.values()) == {1} and set(both.values()) == {2}
    erased = await eraser.erase("vis_gone", "Ann")
    assert erased.rows == before
    assert await counts(database) == before
    assert await database.read(lambda connection: connection.execute(select(visitor.c.id)).scalars().all()) == ["vis_stays"]
    assert await Audit(database, data_dir / "audit.head").verify() == 1


async def talk(database: Database, visitor_id: str, words: str, at_ms: int = 1, count: int = 1) -> str:
    """A conversation of so many messages; its id."""
    record, opened = Record(database), Conversation(new_id("conv"), visitor_id, "zh", created_at_ms=at_ms)
    await record.add_conversation(opened)
    for number in range(count):
        await record.add_message(opened.id, Message(new_id("msg"), "user", f"{words} {number} {words * (number % 7)}", created_at_ms=at_ms))
    return opened.id


async def exported(database: Database, folder: Path) -> Path:
    read = await database.read(lambda connection: read_snapshot(connection, Gates()))
    rules = Rules("salt", is_redacted=False)
    return write_export(select_examples(read, rules), read.made, Shop(), rules, folder)[0]


async def test_not_a_byte_is_left_while_the_server_runs(data_dir: Path, tmp_path: Path) -> None:
    server = Database.in_folder(data_dir)
    await worked_example("vis_stays", "stays", " 款号 88123").keep(server)
    without = await exported(server, data_dir / "export")
    await worked_example("vis_gone", "gone", f" {WORDS} {PHONE}").keep(server)
    exports = [await exported(server, folder) for folder in (data_dir / "export", tmp_path / "elsewhere")]
    shutil.copytree(exports[0], data_dir / "export" / ".unfinished", ignore=shutil.ignore_patterns("provenance.jsonl"))
    rounds = Rounds(server)
    learnt, other = [(await rounds.begin({}, "base", snapshot_sha256(each))).id for each in (exports[0], without)]
    shutil.copytree(exports[0], data_dir / "rounds" / learnt / "rows")
    for each in (learnt, other):  # which may have been measured on anybody's questions
        write_changes(data_dir, each, {"valid": [Change(f"{WORDS} {PHONE}", "", "", "", is_better=True)]})
    await server.write(lambda connection: fill(connection, "vis_gone2"))
    for number in range(12):  # pages with words of both, split again and again
        await talk(server, ("vis_gone", "vis_stays")[number % 2], (f"{PHONE} {WORDS}", "stays")[number % 2], count=15)
    with closing(sqlite3.connect(data_dir / "kefu.db")) as older:  # one that did not overwrite what it deleted
        older.execute("PRAGMA secure_delete=OFF")
        older.execute("DELETE FROM retrieval")
        older.execute("DELETE FROM handoff")
        older.commit()
    assert {"kefu.db-wal", "train.jsonl"} <= set(found_in(data_dir))
    command = Database.in_folder(data_dir)
    audit = Audit(command, data_dir / "audit.head")
    await audit.write("command line", "export_without_redaction", str(tmp_path / "elsewhere"))
    eraser = Eraser(command, audit, data_dir)
    assert set(await eraser.exports_holding("vis_gone")) == {*exports, data_dir / "export" / ".unfinished"}
    erased = [await eraser.erase(visitor_id, "Ann") for visitor_id in ("vis_gone", "vis_gone2")]
    assert found_in(data_dir) == []
    assert list(erased[0].elsewhere) == [exports[1]] and (exports[1] / "manifest.json").exists()
    assert [path.name for path in (data_dir / "export").iterdir()] == [without.name]
    assert exports[0].name in (data_dir / STALE).read_text().split()
    assert without.name not in (data_dir / STALE).read_text().split()
    assert read_changes(data_dir, learnt) == read_changes(data_dir, other) == {}
    assert [(await rounds.get(each)).state for each in (learnt, other)] == ["stale_erased", "training"]
    assert await audit.verify() == 3
    assert len(await eraser.conversations("vis_stays")) == 7
    assert await server.read(lambda connection: connection.execute(text("PRAGMA integrity_check")).scalar_one()) == "ok"
    command.close()
    server.close()
    assert found_in(data_dir) == []


async def test_a_backup_does_not_bring_anybody_back(data_dir: Path, tmp_path: Path, clock: Clock) -> None:
    database = Database.in_folder(data_dir)
    await talk(database, "vis_gone", PHONE)
    await talk(database, "vis_stays", "stays")
    database.close()
    shutil.copy(data_dir / "kefu.db", tmp_path / "backup.db")

    def opened() -> tuple[Database, Eraser]:
        database = Database.in_folder(data_dir)
        return database, Eraser(database, Audit(database, tmp_path / "audit.head"), data_dir, clock)

    database, eraser = opened()
    await eraser.erase("vis_gone", "Ann")
    assert await eraser.replay() == 0
    database.close()
    shutil.copy(tmp_path / "backup.db", data_dir / "kefu.db")
    assert "kefu.db" in found_in(data_dir)
    database, eraser = opened()
    again = await talk(database, "vis_gone", "back again", at_ms=clock.ms + 1)
    assert await eraser.replay() == 1
    newer = data_dir / "export" / "newer"
    newer.mkdir(parents=True)
    (newer / "provenance.jsonl").write_text(json.dumps({"conversation": conversation_hash(again)}) + "\n")
    assert await eraser.exports_holding("vis_gone") == [newer]
    assert await eraser.replay() == 0 and newer.exists()
    assert found_in(data_dir) == []
    assert await eraser.conversations("vis_gone") == [again] and len(await eraser.conversations("vis_stays")) == 1
    assert "vis_gone" not in (data_dir / TOMBSTONES).read_text()
    database.close()


async def test_who_was_never_here_cannot_be_erased_and_who_was_can_be_twice(database: Database, eraser: Eraser, data_dir: Path) -> None:
    with pytest.raises(NotFound):
        await eraser.erase("vis_nobody", "Ann")
    assert not (data_dir / TOMBSTONES).exists()
    await talk(database, "vis_gone", PHONE)
    assert [sum((await eraser.erase("vis_gone", "Ann")).rows.values()) for _ in range(2)] == [3, 0]
    await talk(database, "vis_gone", PHONE)  # as a backup would
    assert (await eraser.replay(), await eraser.replay()) == (1, 0)


async def test_an_answer_that_comes_too_late_is_not_kept(database: Database, eraser: Eraser) -> None:
    conversation_id = await talk(database, "vis_gone", PHONE)
    await eraser.erase("vis_gone", "Ann")
    with pytest.raises(NotFound):
        await Record(database).add_message(conversation_id, Message(new_id("msg"), "assistant", WORDS))
    assert set((await counts(database)).values()) == {0}
