"""The resident model's second look at what customers said: asked when nobody else needs it, and interrupted when somebody does."""

import asyncio
import json
from dataclasses import replace

from backends.protocol import EngineError
from feedback.second_look import SCHEMA, Messages
from server.chat.service import ChatJob, ChatMessage, ChatService
from server.errors import InvalidRequest

POLL_S = 0.05
MAX_TOKENS = 80
FORMAT = json.dumps({"type": "json_schema", "json_schema": {"name": "opinion", "strict": True, "schema": SCHEMA}})


async def ask_at_rest(chat: ChatService, messages: Messages, session: str) -> tuple[str, str]:
    """What the model says under SCHEMA, and its name, once no answer is under way; one that begins meanwhile goes first.

    Two empty words when it is away.
    """
    turns = tuple(ChatMessage("system" if each["role"] == "system" else "user", each["content"]) for each in messages)
    sampling = replace(chat.default_sampling(), temperature=0.0, max_tokens=MAX_TOKENS)
    job = ChatJob(turns, sampling, effort="none", scope_private=session, session=session, response_format=FORMAT)
    while True:
        asking = None if chat.num_open else asyncio.create_task(_ask(chat, job))
        try:
            while asking and not asking.done() and chat.num_open <= 1:
                await asyncio.wait([asking], timeout=POLL_S)
            if asking and asking.done():
                return await asking, chat.spec.name
        except (EngineError, InvalidRequest):
            return "", ""
        finally:
            if asking:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(POLL_S)


async def _ask(chat: ChatService, job: ChatJob) -> str:
    async with chat.answering(job, 1) as choices:
        async for _ in choices:
            pass
    return choices.streams[0].result.content
