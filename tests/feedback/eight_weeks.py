"""Weeks of a desk's plausible life, the same every time: what is asked, how it is answered, and how that is received."""

import random
from collections import defaultdict
from dataclasses import asdict

from sqlalchemy import Connection, Table, insert

from feedback.database import Database
from feedback.insights import DAY_MS, WEEK_MS
from feedback.tables import completion, conversation, handoff, message, retrieval, signal, visitor
from tests.feedback.conftest import made

TABLES = (visitor, conversation, message, completion, retrieval, signal, handoff)
REASONS = ("request", "request", "request", "policy", "failure", "failure", "check", "hours")


class _Weeks:
    def __init__(self, chance: random.Random) -> None:
        self.rows: defaultdict[Table, list[dict[str, object]]] = defaultdict(list)
        self._chance = chance

    def conversation(self, number: int, at_ms: int, adapter: str | None, skill: float, num_turns: int) -> None:
        name, sure = f"conv_{number}", self._chance.random
        is_person, is_resolved = sure() > 0.6 + skill / 3, sure() < 0.8
        state = ("resolved" if is_resolved else "human") if is_person else "bot"
        self.rows[visitor].append({"id": f"vis_{number}", "created_at_ms": at_ms})
        self.rows[conversation].append(
            {"id": name, "visitor_id": f"vis_{number}", "language": "en", "consent_train": False, "created_at_ms": at_ms, "state": state}
        )
        for turn in range(num_turns):
            self._turn(number, turn, at_ms + turn * 60_000, adapter, skill)
        if is_person:
            self._person(number, at_ms + num_turns * 60_000, is_resolved)

    def _turn(self, number: int, turn: int, at_ms: int, adapter: str | None, skill: float) -> None:
        said = {"conversation_id": f"conv_{number}", "created_at_ms": at_ms, "text": "How long does shipping take?"}
        asked, answered, name = f"msg_{number}_{2 * turn}", f"msg_{number}_{2 * turn + 1}", f"cmpl_{number}_{turn}"
        self.rows[message].append({"id": asked, "seq": 2 * turn + 1, "role": "user", "reply_to_id": None, **said})
        self.rows[message].append({"id": answered, "seq": 2 * turn + 2, "role": "assistant", "reply_to_id": asked, **said})
        thought, sure = int(self._chance.lognormvariate(5.5 - skill, 0.6)), self._chance.random
        how = made(id=name, adapter=adapter, num_reasoning_tokens=thought, first_answer_ms=400 + thought * 9.0)
        self.rows[completion].append({"message_id": answered, "created_at_ms": at_ms, **asdict(how)})
        score = 1.5 if sure() < 0.8 + skill / 10 else 0.4
        self.rows[retrieval].append({"completion_id": name, "rank": 1, "passage_id": "p1", "version": "1", "score": score})
        if sure() < 0.15:
            self._signal(number, name, "rephrase" if sure() < 0.8 - skill / 3 else "regenerate", -1, at_ms)
        if sure() < 0.4:
            self._signal(number, name, "thumb", 1 if sure() < 0.5 + skill / 3 else -1, at_ms, float(sure() > 0.07))

    def _person(self, number: int, at_ms: int, is_resolved: bool) -> None:
        steps = [("bot", "waiting", self._chance.choice(REASONS)), ("waiting", "human", "agent")]
        for source, to, reason in [*steps, ("human", "resolved", "agent")][: 3 if is_resolved else 2]:
            move = {"from_state": source, "to_state": to, "reason": reason, "actor": "Mei", "created_at_ms": at_ms}
            self.rows[handoff].append({"conversation_id": f"conv_{number}", **move})
        if is_resolved and self._chance.random() < 0.5:
            self._signal(number, None, "csat", self._chance.choice((1, 3, 4, 4, 5, 5, 5)), at_ms)
        if is_resolved and self._chance.random() < 0.1:
            self._signal(number, None, "reopen", 1, at_ms)

    def _signal(self, number: int, about: str | None, kind: str, value: float, at_ms: int, weight: float = 1.0) -> None:
        row = {"conversation_id": f"conv_{number}", "completion_id": about, "visitor_id": f"vis_{number}", "tags": [], "actor": "visitor"}
        name = f"{number}_{len(self.rows[signal])}"
        told = {"kind": kind, "value": value, "weight": weight, "reason": None if weight else "too_early", "created_at_ms": at_ms}
        self.rows[signal].append({"id": f"sig_{name}", "idempotency_key": name, **row, **told})


async def seed(database: Database, now: int, num_weeks: int = 8, per_week: int = 60, num_turns: int = 3) -> None:
    """The last weeks before `now`, the newest last: an adapter came halfway and does better; the third week nearly nobody wrote."""
    weeks = _Weeks(random.Random(7))
    for week in range(num_weeks):
        for number in range(per_week if week != 2 else 9):
            at_ms = now - (num_weeks - week) * WEEK_MS + DAY_MS + number * 5 * DAY_MS // per_week
            adapter = "round-1@3f9c2a7be041" if week >= num_weeks // 2 and number % 2 else None
            weeks.conversation(week * per_week + number, at_ms, adapter, 0.9 if adapter else 0.3, num_turns)

    def work(connection: Connection) -> None:
        for table in TABLES:
            connection.execute(insert(table), weeks.rows[table])

    await database.write(work)
