"""Conversations with signals, as chats in memory and as rows in a database."""

from collections.abc import Sequence

from sqlalchemy import insert

from feedback.database import Database
from feedback.pairs import Chat, Evidence, Passage
from feedback.record import Citation, Conversation, Message, Record, new_id
from feedback.tables import signal
from tests.feedback.conftest import made

PASSAGES = (
    Passage(1, "refund.1", "退款", "退款在申请后 3-5 个工作日到账。申请退款请到订单页。"),
    Passage(2, "refund.2", "Refunds", "A refund arrives 3-5 working days after you ask for it. A worn item cannot be returned."),
)
ASKED, RESTATED = "我的退款什么时候到?", "我是说已经申请了,几天能到账"
HOW_TO, DAYS = "申请退款请到订单页 [1]。", "3-5 个工作日到账 [1]。"


class Talk:
    """A conversation that is written line by line; signals go to the answer before."""

    def __init__(self, visitor_id: str = "vis_a", name: str = "a", language: str = "zh") -> None:
        self.said: list[Message] = []
        self.signals: dict[str, list[Evidence]] = {}
        self.name, self.visitor_id, self.language = name, visitor_id, language

    def asks(self, text: str, replaces: Message | None = None) -> Message:
        return self._say("user", text, replaces_id=replaces.id if replaces else None)

    def answers(self, text: str, to: Message | None = None, replaces: Message | None = None) -> Message:
        question = to or next(each for each in reversed(self.said) if each.role == "user")
        made_id = f"cmpl_{self.name}{len(self.said)}"
        return self._say("assistant", text, reply_to_id=question.id, completion_id=made_id, replaces_id=replaces.id if replaces else None)

    def person(self, text: str) -> Message:
        return self._say("agent", text, author="Li", gold=True)

    def signal(self, answer: Message, kind: str, value: float, prob: float = 1.0, tags: Sequence[str] = ()) -> None:
        mine = self.signals.setdefault(str(answer.completion_id), [])
        mine.append(Evidence(f"sig_{answer.id}{len(mine)}", kind, value, 1.0, prob, tuple(tags)))

    def chat(self) -> Chat:
        answered = [str(each.completion_id) for each in self.said if each.completion_id]
        signals = {each: tuple(self.signals.get(each, ())) for each in answered}
        return Chat(f"conv_{self.name}", self.visitor_id, self.language, self.said, dict.fromkeys(answered, PASSAGES), signals)

    def _say(self, role: str, text: str, **fields: object) -> Message:
        number = len(self.said) + 1
        said = Message(f"msg_{self.name}{number}", role, text, seq=number, created_at_ms=1_000_000_000 + number, **fields)  # type: ignore[arg-type]
        self.said.append(said)
        return said

    async def keep(self, database: Database, consent_train: bool = True, at_ms: int = 1) -> None:
        """Put it on disk, with what the answers cite."""
        record, conversation_id = Record(database), f"conv_{self.name}"
        await record.add_conversation(Conversation(conversation_id, self.visitor_id, self.language, consent_train, created_at_ms=at_ms))
        for each in self.said:
            cited = tuple(Citation(one.number, one.id, one.title, one.text) for one in PASSAGES)
            how = made(id=each.completion_id, content=each.text) if each.completion_id else None
            kept = {
                field: getattr(each, field)
                for field in ("id", "role", "text", "reply_to_id", "replaces_id", "created_at_ms", "author", "gold")
            }
            await record.add_message(conversation_id, Message(**kept, citations=cited if how else ()), how)
        target = {"conversation_id": conversation_id, "visitor_id": self.visitor_id, "actor": "visitor", "created_at_ms": 1}
        rows = [
            {"id": f"{one.signal_id}", "completion_id": completion_id, "kind": one.kind, "value": one.value, "tags": list(one.tags)}
            | {"weight": one.weight, "idempotency_key": new_id("key"), **target}
            for completion_id, evidence in self.signals.items()
            for one in evidence
        ]
        if rows:
            await database.write(lambda connection: connection.execute(insert(signal), rows).close())


def worked_example(visitor_id: str = "vis_a", name: str = "a", number: str = "") -> Talk:
    """The customer asks, is told something else, says it again, is content."""
    talk = Talk(visitor_id, name)
    talk.asks(ASKED + number)
    first = talk.answers(HOW_TO + number)
    talk.asks(RESTATED)
    second = talk.answers(DAYS + number)
    talk.asks("好的谢谢")
    talk.signal(first, "rephrase", -1, 0.96)
    talk.signal(first, "correction", -1, 0.96)
    talk.signal(second, "gratitude", 1)
    return talk
