"""A policy tried on the model: answers as a customer would get them, told nobody and not kept."""

import secrets
from collections.abc import Sequence
from dataclasses import replace

from feedback.calls import Call
from feedback.record import Completion, Message
from server.chat.service import ChatJob, ChatMessage, ChatService, ChatStream
from server.desk.policy import Policy
from server.desk.prompts import PUBLIC_SCOPE
from server.desk.tool import Caller
from server.desk.tools import Toolbox
from server.desk.turn import Brief, Done, Failed, Turn
from server.settings import DeskSettings


async def answer(chat: ChatService, settings: DeskSettings, policy: Policy, said: Sequence[ChatMessage]) -> str:
    """What a customer would be told after `said`. Raises EngineError: ContextTooLong, EngineBusy, EngineDown ..."""
    max_tokens = min(settings.max_answer_tokens, chat.spec.context_length // 4, chat.spec.num_kv_tokens // 4)

    def begin(calls: Sequence[Call] = ()) -> ChatStream:
        job = ChatJob(
            messages=(ChatMessage("system", policy.system), *said),
            sampling=replace(chat.default_sampling(), seed=secrets.randbits(31), max_tokens=max_tokens),
            effort=settings.effort,
            scope_public=PUBLIC_SCOPE,
            scope_private="policy trial",
            adapter=chat.adapters.chosen_key,
        )
        return chat.open(job)

    no_tools = Toolbox({}, Caller(policy.language))
    evidence = policy.evidence(message.content for message in said)
    turn = Turn(begin(), Brief(policy, evidence, said[-1].content, chat.spec, begin, no_tools), _forget, wait_s=lambda place: 0)
    try:
        async for event in turn.events():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Done):
                return event.message.text
    finally:
        turn.hang_up()
    raise AssertionError("a turn ends with Done or Failed")


async def _forget(message: Message, made: Completion | None, others: list[Completion], calls: list[Call]) -> Message:
    return message
