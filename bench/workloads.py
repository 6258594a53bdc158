"""What customers do, as load: each workload runs once against one server and gives its rows."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from backends.mini.shop import load_shop, system_message
from bench.client import Body, Message, Recording, Reply, record
from bench.desk import crowd
from bench.prompts import Prompts
from bench.rows import Row, summarize
from bench.servers import Target, peak_memory_bytes

POLICY_WORDS = 1100
BURST_STREAMS = 8
BURST_TOKENS = 64
NUM_TURNS = 5
TURN_TOKENS = 128
NUM_CUSTOMERS = 40
CUSTOMER_TURNS = 2
CUSTOMER_TOKENS = 32
# A QwQ prompt ends with `<think>\n`, two tokens that the next turn's prompt does not repeat.
OPENER_TOKENS = 2


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


@dataclass(frozen=True, slots=True)
class Load:
    """One run against one server. `pause_s` is how long a customer reads before the next turn; `tokens` the length of a decode."""

    target: Target
    prompts: Prompts
    places: int = 8
    tokens: int = 128
    pause_s: float = 3.0

    async def steady(self, messages: Sequence[Message], max_tokens: int) -> Recording:
        """A completion that does not end by itself."""
        return await record(self.target.base_url, {**self._body(messages, max_tokens), **self.target.endless})

    async def natural(self, messages: Sequence[Message], max_tokens: int) -> Recording:
        """A completion that ends when the model ends it; half of it may be thinking."""
        return await record(self.target.base_url, {**self._body(messages, max_tokens), self.target.budget: max_tokens // 2})

    async def in_turn(self, workload: str, conversations: Sequence[Sequence[Message]], fields: Body) -> Row:
        """One completion after the other, always the same text; `fields` go to each."""
        clock, asked = Clock(), [{**self._body(messages, self.tokens), "seed": 1, **fields} for messages in conversations]
        replies = [(await record(self.target.base_url, body)).reply() for body in asked]
        return replace(self.sum_up(workload, clock.stopped(), replies), streams=1)

    async def row(self, workload: str, requests: Sequence[Awaitable[Recording]]) -> Row:
        """Run `requests` together and sum them up."""
        clock = Clock()
        recordings = await asyncio.gather(*requests)
        return self.sum_up(workload, clock.stopped(), [recording.reply() for recording in recordings])

    def sum_up(self, workload: str, clock: "Clock", replies: Sequence[Reply]) -> Row:
        row = summarize(self.target.name, workload, replies, clock.wall_s)
        return replace(row, peak_memory_bytes=peak_memory_bytes(self.target.pid), client_cpu_s=clock.cpu_s)

    def _body(self, messages: Sequence[Message], max_tokens: int) -> Body:
        drawn = {"temperature": 1.0, "top_k": 40, "top_p": 0.95, "min_p": 0.0}
        return {"model": self.target.model, "messages": list(messages), "max_tokens": max_tokens, **drawn, **self.target.body}


class Clock:
    """Wall time and the bench's own processor time, from now until it is stopped."""

    def __init__(self) -> None:
        self.wall_s, self.cpu_s = -time.perf_counter(), -time.process_time()

    def stopped(self) -> "Clock":
        self.wall_s += time.perf_counter()
        self.cpu_s += time.process_time()
        return self


async def decode(load: Load, streams: int) -> list[Row]:
    """`streams` short distinct prompts at once, `tokens` each."""
    return [await load.row("decode", [load.steady([user(load.prompts.question())], load.tokens) for _ in range(streams)])]


async def prefill(load: Load) -> list[Row]:
    """One long new prompt and a single token."""
    row = await load.row("prefill", [load.steady([user(load.prompts.policy(POLICY_WORDS))], 1)])
    assert row.computed_tokens is not None and row.wall_s is not None
    return [replace(row, prefill_tokens_per_s=row.computed_tokens / row.wall_s)]


async def burst(load: Load) -> list[Row]:
    """Customers arriving at once over one long system prompt: nobody has sent it before, then somebody has."""
    return [await _burst(load, "burst-cold", _nothing), await _burst(load, "burst-warm", _seen_once)]


async def _burst(load: Load, workload: str, before: Callable[[Load, str], Awaitable[None]]) -> Row:
    policy = load.prompts.policy(POLICY_WORDS)
    await before(load, policy)
    asks = [load.steady([system(policy), user(load.prompts.question())], BURST_TOKENS) for _ in range(BURST_STREAMS)]
    return await load.row(workload, asks)


async def _nothing(load: Load, policy: str) -> None:
    pass


async def _seen_once(load: Load, policy: str) -> None:
    (await load.steady([system(policy), user(load.prompts.question())], 1)).reply()
    await asyncio.sleep(load.pause_s)


async def turns(load: Load) -> list[Row]:
    """One conversation whose old thinking the template drops. Ideal from the second turn on: the new text and its template."""
    messages = [system(load.prompts.policy(POLICY_WORDS // 4))]
    rows: list[Row] = []
    questions: list[Message] = []
    for number in range(1, NUM_TURNS + 1):
        questions.append(user(load.prompts.question()))
        messages.append(questions[-1])
        clock = Clock()
        reply = (await load.natural(messages, TURN_TOKENS)).reply()
        rows.append(load.sum_up(f"turn-{number}", clock.stopped(), [reply]))
        messages.append(assistant(reply.content))
        await asyncio.sleep(load.pause_s)
    alone = [(await load.steady([question], 1)).reply() for question in questions]
    ideals = [rows[0].prompt_tokens, *(reply.prompt_tokens for reply in alone[1:])]
    return [replace(row, ideal_tokens=ideal) for row, ideal in zip(rows, ideals, strict=True)]


async def places(load: Load) -> list[Row]:
    """Many customers taking turns over few places with one system prompt. Ideal: every token of every prompt once."""
    policy = system(load.prompts.policy(POLICY_WORDS))
    conversations = [[policy, user(load.prompts.question())] for _ in range(NUM_CUSTOMERS)]
    room = asyncio.Semaphore(load.places)

    async def turn(conversation: list[Message]) -> Recording:
        async with room:
            return await load.natural(conversation, CUSTOMER_TOKENS)

    clock = Clock()
    rounds: list[list[Reply]] = []
    for _ in range(CUSTOMER_TURNS):
        recordings = await asyncio.gather(*(turn(conversation) for conversation in conversations))
        rounds.append([recording.reply() for recording in recordings])
        for conversation, reply in zip(conversations, rounds[-1], strict=True):
            conversation += [assistant(reply.content), user(load.prompts.question())]
    row = load.sum_up("places", clock.stopped(), [reply for one in rounds for reply in one])
    alone = (await load.steady([conversations[0][1]], 1)).reply()
    shared = rounds[0][0].prompt_tokens - alone.prompt_tokens
    own = sum(reply.prompt_tokens - shared for reply in rounds[-1])
    return [replace(row, streams=load.places, ideal_tokens=shared + own + OPENER_TOKENS * NUM_CUSTOMERS * (CUSTOMER_TURNS - 1))]


async def guess(load: Load) -> list[Row]:
    """A customer alone: answers that quote their passages, in thought and text, then text that is drawn freely."""
    shop = load_shop("en")
    quoting = [[system(system_message(shop, "en")), user(question)] for question in shop.suggestions]
    free = [[user(load.prompts.question())] for _ in quoting]
    return [await load.in_turn("guess-quoting", quoting, {"temperature": 0}), await load.in_turn("guess-free", free, load.target.endless)]


async def desk(load: Load) -> list[Row]:
    """Customers in the support chat, all at once."""
    return [await crowd(load.target, load.pause_s)]
