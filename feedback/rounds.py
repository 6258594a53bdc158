"""Rounds: which adapters there are, what they come from, which one customers talk to, and when one must go."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from sqlalchemy import Connection, distinct, func, insert, not_, or_, select, update

from feedback.database import Database
from feedback.record import now_ms
from feedback.statistics import wilson
from feedback.tables import completion, handoff, message, round_
from feedback.training.job import RoundRefused

State = Literal["training", "candidate", "canary", "live", "retired", "stale_erased"]
# Looked at again and again, an interval is left by chance sooner or later; three standard errors make that rare.
Z_WATCH = 3.0
MIN_SEEN = 10
# The share that no adapter may certainly exceed, however badly the other side does.
RED_LINES: Mapping[str, float] = {"violations": 0.15, "errors": 0.10, "handoffs": 0.50}


@dataclass(frozen=True, slots=True)
class Round:
    """One training run and the adapter that came of it; the fields are the columns of its table."""

    id: str
    number: int
    parent_id: str | None
    job: Mapping[str, object]
    base_sha256: str
    snapshot_sha256: str
    created_at_ms: int
    state_at_ms: int
    state: State = "training"
    reason: str = ""
    adapter: str | None = None
    metrics: Mapping[str, object] = field(default_factory=dict)
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Arm:
    """How one side of a canary did. `violations` and `errors` count among `answers`, attempts included; `handoffs` among conversations."""

    conversations: int
    answers: int
    violations: int
    errors: int
    handoffs: int


def red_line(canary: Arm, other: Arm) -> str:
    """Which rate of the canary is certainly above the other side's, or above its red line; empty for none."""
    for name, limit in RED_LINES.items():
        hits, other_hits = getattr(canary, name), getattr(other, name)
        num, other_num = (arm.conversations if name == "handoffs" else arm.answers for arm in (canary, other))
        if num >= MIN_SEEN and wilson(hits, num, Z_WATCH)[0] > min(limit, wilson(other_hits, other_num, Z_WATCH)[1]):
            return f"{name}: {hits} of {num}, elsewhere {other_hits} of {other_num}"
    return ""


class Rounds:
    """The registry. Methods that write return after COMMIT; they raise RoundRefused with nothing kept."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, job: Mapping[str, object], base_sha256: str, snapshot_sha256: str) -> Round:
        """A new round in training; its parent is what is live now."""

        def work(connection: Connection) -> Round:
            number, live, now = (connection.execute(select(func.max(round_.c.number))).scalar() or 0) + 1, _in(connection, "live"), now_ms()
            begun = Round(f"round-{number}", number, live.id if live else None, job, base_sha256, snapshot_sha256, now, now)
            connection.execute(insert(round_).values(**asdict(begun)))
            return begun

        return await self._database.write(work)

    async def all(self) -> list[Round]:
        """The newest first."""
        newest = select(round_).order_by(round_.c.number.desc())
        return await self._database.read(lambda connection: [Round(**row) for row in connection.execute(newest).mappings()])

    async def get(self, round_id: str) -> Round:
        return await self._database.read(lambda connection: _get(connection, round_id))

    async def trained(self, round_id: str, adapter: str | None) -> None:
        """Training is done, and this is the adapter's key; a reward model has none."""
        await self._database.write(lambda connection: _move(connection, round_id, "candidate", "trained", ("training",), adapter=adapter))

    async def measured(self, round_id: str, metrics: Mapping[str, object]) -> None:
        """Keep what an evaluation found."""
        kept = update(round_).where(round_.c.id == round_id).values(metrics=dict(metrics))
        await self._database.write(lambda connection: connection.execute(kept))

    async def promote(self, round_id: str, share: float) -> None:
        """Let a share of conversations talk to it (`canary`), or all of them (`live`): what was live before is its parent, and retired."""

        def work(connection: Connection) -> None:
            live, canary = _in(connection, "live"), _in(connection, "canary")
            if canary and canary.id != round_id:
                raise RoundRefused(f"{canary.id} is the canary: promote it or roll it back first")
            if _get(connection, round_id).job.get("method") == "reward":
                raise RoundRefused(f"{round_id} is a reward model: it answers nobody; GRPO asks it, with --reward-model {round_id}")
            state, states = "canary" if share < 1 else "live", ("candidate", "canary", "retired")
            _move(connection, round_id, state, f"{share:.0%} of conversations", states, share=share, parent_id=live.id if live else None)
            if live and share >= 1:
                _move(connection, live.id, "retired", f"{round_id} took its place", ("live",))

        await self._database.write(work)

    async def rollback(self, reason: str, only: str = "") -> tuple[str, str]:
        """Take the canary back, or else what is live, in whose place its parent comes; none but `only`, if that is named.

        Returns what was taken back, and what is live now.
        """

        def work(connection: Connection) -> tuple[str, str]:
            live, canary = _in(connection, "live"), _in(connection, "canary")
            taken = canary or live
            if taken is None or only not in {"", taken.id}:
                raise RoundRefused(f"{only} is not served any more" if only else "no round is served")
            _move(connection, taken.id, "retired", reason, (taken.state,))
            if canary:
                return taken.id, live.id if live else ""
            if taken.parent_id is None or _get(connection, taken.parent_id).state != "retired":
                return taken.id, ""
            _move(connection, taken.parent_id, "live", f"{taken.id} was rolled back", ("retired",))
            return taken.id, taken.parent_id

        return await self._database.write(work)

    async def erased(self, snapshot_sha256: str) -> None:
        """Rows of this snapshot were erased: what learnt from them serves no more, nor what learnt from a reward model that did."""
        values = {"state": "stale_erased", "reason": "rows that it learnt from were erased", "state_at_ms": now_ms()}
        taught = select(round_.c.id).where(round_.c.snapshot_sha256 == snapshot_sha256)
        learnt = or_(round_.c.snapshot_sha256 == snapshot_sha256, round_.c.job["reward_model"].as_string().in_(taught))
        await self._database.write(lambda connection: connection.execute(update(round_).where(learnt).values(**values)))

    async def serving(self) -> tuple[Round | None, Round | None]:
        """What is live and what is the canary."""
        return await self._database.read(lambda connection: (_in(connection, "live"), _in(connection, "canary")))

    async def arms(self, canary: Round) -> tuple[Arm, Arm]:
        """The canary's side and the other, since it became the canary."""
        return await self._database.read(
            lambda connection: (_arm(connection, canary, is_other=False), _arm(connection, canary, is_other=True))
        )


def _get(connection: Connection, round_id: str) -> Round:
    row = connection.execute(select(round_).where(round_.c.id == round_id)).mappings().first()
    if row is None:
        raise RoundRefused(f"there is no round {round_id!r}")
    return Round(**row)


def _in(connection: Connection, state: State) -> Round | None:
    row = connection.execute(select(round_).where(round_.c.state == state)).mappings().first()
    return Round(**row) if row else None


def _move(connection: Connection, round_id: str, state: str, reason: str, states: tuple[str, ...], **more: object) -> None:
    if (now := _get(connection, round_id).state) not in states:
        raise RoundRefused(f"{round_id} is {now}")
    values = {"state": state, "reason": reason, "state_at_ms": now_ms(), **more}
    connection.execute(update(round_).where(round_.c.id == round_id).values(**values))


def _arm(connection: Connection, canary: Round, is_other: bool) -> Arm:
    by_it = func.coalesce(completion.c.adapter, "") == canary.adapter
    mine = completion.c.created_at_ms >= canary.state_at_ms, not_(by_it) if is_other else by_it
    counted = select(completion.c.status, func.count()).where(*mine).group_by(completion.c.status)
    num = dict(tuple(row) for row in connection.execute(counted))
    told = select(message.c.conversation_id).join(completion, completion.c.message_id == message.c.id).where(*mine).distinct().subquery()
    handed = select(func.count(distinct(handoff.c.conversation_id))).where(
        handoff.c.to_state == "waiting", handoff.c.created_at_ms >= canary.state_at_ms, handoff.c.conversation_id.in_(select(told))
    )
    talked = connection.execute(select(func.count()).select_from(told)).scalar() or 0
    violations, errors = num.get("rejected", 0), num.get("interrupted", 0)
    return Arm(talked, sum(num.values()), violations, errors, connection.execute(handed).scalar() or 0)
