"""Retention: what was said is deleted when its time is over, what was said of it is redacted, and the audit log lets old rows go."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from sqlalchemy import ColumnElement, Connection, Select, Table, and_, exists, select, update

from feedback.audit import DAY_MS, Audit
from feedback.database import Database, RecordUnavailable
from feedback.erase import Eraser, delete_rows, visitors_without_conversations
from feedback.record import now_ms
from feedback.redact import Redactor
from feedback.tables import conversation, handoff, message, pair, review, signal, visitor

log = logging.getLogger("kefu.retention")
# More often than once a day: a computer that sleeps through the hour misses nothing.
SWEEP_EVERY_S = 3600.0
# Customers are served between two such transactions.
BATCH = 200


# The free text of feedback, by table. What people answered in a conversation is its transcript and goes with it.
FREE_TEXT = {signal: signal.c.comment, review: review.c.reason, handoff: handoff.c.contact}


@dataclass(frozen=True, slots=True)
class Days:
    """How long each is kept; 0 means for ever."""

    transcripts_days: int = 30
    training_days: int = 180  # transcripts that the customer lets train a model
    feedback_days: int = 180  # the text of feedback as it was written; then it is redacted
    audit_days: int = 365


class Retention:
    """Deletes conversations so many days after their last message, and of those that stay redacts the feedback."""

    def __init__(self, database: Database, eraser: Eraser, audit: Audit, days: Days, clock: Callable[[], int] = now_ms) -> None:
        self._database = database
        self._eraser = eraser
        self._audit = audit
        self._days = days
        self._clock = clock

    async def run(self) -> None:
        """Erase again whom a backup brought back, then delete what is over, for as long as the server runs."""
        while True:
            try:
                if num_back := await self._eraser.replay():
                    log.warning("%d erased visitors had come back with a backup; they are erased again", num_back)
                if num_gone := await self.sweep():
                    log.info("%d conversations were deleted, as their time was over", num_gone)
            except (RecordUnavailable, OSError) as error:
                log.warning("not everything was deleted that should be: %s", error)
            await asyncio.sleep(SWEEP_EVERY_S)

    async def sweep(self) -> int:
        """Delete and redact what is over now; returns how many conversations went. Raises RecordUnavailable."""
        now, num_gone, num_redacted = self._clock(), 0, 0
        for consent_train, days in ((False, self._days.transcripts_days), (True, self._days.training_days)):
            over = _over(now - days * DAY_MS, consent_train=consent_train)
            while days and (num := await self._database.write(partial(_delete_batch, over))):
                num_gone += num
        if days := self._days.transcripts_days:
            silent = visitors_without_conversations(visitor.c.created_at_ms <= now - days * DAY_MS)
            await self._database.write(lambda connection: delete_rows(connection, silent))
        for table in FREE_TEXT if self._days.feedback_days else ():
            batch = partial(_redact_batch, table, now - self._days.feedback_days * DAY_MS, now)
            while num := await self._database.write(batch):
                num_redacted += num
        if num_gone or num_redacted:
            await self._database.truncate_log()
        if self._days.audit_days:
            await self._audit.cut(self._days.audit_days)
        return num_gone


def _over(until_ms: int, *, consent_train: bool) -> ColumnElement[bool]:
    """Nothing was said since then."""
    said = exists().where(message.c.conversation_id == conversation.c.id, message.c.created_at_ms > until_ms)
    return and_(conversation.c.consent_train.is_(consent_train), conversation.c.created_at_ms <= until_ms, ~said)


def _delete_batch(over: ColumnElement[bool], connection: Connection) -> int:
    some = select(conversation.c.id).where(over).order_by(conversation.c.created_at_ms).limit(BATCH)
    ids = list(connection.execute(some).scalars())
    return delete_rows(connection, {conversation: conversation.c.id.in_(ids)}).get("conversation", 0)


def _redact_batch(table: Table, until_ms: int, now: int, connection: Connection) -> int:
    """The other exception to tables that only grow: a text changes once, and its row remembers when."""
    redactors: dict[str, Redactor] = defaultdict(Redactor)
    rows = connection.execute(_unredacted(table, until_ms)).all()
    for key, conversation_id, said in rows:
        redact = redactors[conversation_id].redact
        text = {name: redact(str(value)) for name, value in said.items()} if isinstance(said, Mapping) else redact(said)
        changed = {FREE_TEXT[table]: text, table.c.redacted_at_ms: now}
        connection.execute(update(table).where(table.c.seq == key).values(changed))
    return len(rows)


def _unredacted(table: Table, until_ms: int) -> Select[int, str, str | Mapping[str, object]]:
    source, whose = (review.join(pair), pair.c.conversation_id) if table is review else (table, table.c.conversation_id)
    due = and_(table.c.created_at_ms <= until_ms, table.c.redacted_at_ms.is_(None), FREE_TEXT[table].is_not(None))
    return select(table.c.seq, whose, FREE_TEXT[table]).select_from(source).where(due).order_by(table.c.seq).limit(BATCH)
