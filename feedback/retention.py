"""Retention: what was said is deleted when its time is over."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from sqlalchemy import ColumnElement, Connection, and_, exists, select

from feedback.database import Database, RecordUnavailable
from feedback.erase import Eraser, delete_rows, visitors_without_conversations
from feedback.record import now_ms
from feedback.tables import conversation, message, visitor

log = logging.getLogger("kefu.retention")
DAY_MS = 24 * 3_600_000
# More often than once a day: a computer that sleeps through the hour misses nothing.
SWEEP_EVERY_S = 3600.0
# Customers are served between two such transactions.
BATCH = 200


class Retention:
    """Deletes conversations so many days after their last message; 0 days keeps them for ever."""

    def __init__(
        self, database: Database, eraser: Eraser, transcripts_days: int, training_days: int, clock: Callable[[], int] = now_ms
    ) -> None:
        """`training_days` is for those that the customer lets train a model."""
        self._database = database
        self._eraser = eraser
        self._days = {False: transcripts_days, True: training_days}
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
        """Delete what is over now; returns how many conversations. Raises RecordUnavailable."""
        now, num_gone = self._clock(), 0
        for consent_train, days in self._days.items():
            over = _over(now - days * DAY_MS, consent_train=consent_train)
            while days and (num := await self._database.write(partial(_delete_batch, over))):
                num_gone += num
        if days := self._days[False]:
            silent = visitors_without_conversations(visitor.c.created_at_ms <= now - days * DAY_MS)
            await self._database.write(lambda connection: delete_rows(connection, silent))
        if num_gone:
            await self._database.truncate_log()
        return num_gone


def _over(until_ms: int, *, consent_train: bool) -> ColumnElement[bool]:
    """Nothing was said since then."""
    said = exists().where(message.c.conversation_id == conversation.c.id, message.c.created_at_ms > until_ms)
    return and_(conversation.c.consent_train.is_(consent_train), conversation.c.created_at_ms <= until_ms, ~said)


def _delete_batch(over: ColumnElement[bool], connection: Connection) -> int:
    some = select(conversation.c.id).where(over).order_by(conversation.c.created_at_ms).limit(BATCH)
    ids = list(connection.execute(some).scalars())
    return delete_rows(connection, {conversation: conversation.c.id.in_(ids)}).get("conversation", 0)
