"""The async door to the engine process, in the web process."""

import asyncio
import itertools
import time
from collections import deque
from types import TracebackType
from typing import Self

from backends.protocol import AdapterRefused, ContextTooLong, EngineBusy, EngineDied, EngineDown, EngineError, ModelSpec, NoMemory
from backends.sequence import CacheScope, FinishReason, Priority, SamplingParams, Thinking
from backends.wire import (
    Abort,
    Beat,
    CloseThought,
    Loaded,
    LoadFailed,
    Stats,
    Submit,
    ToEngine,
    TokenEvent,
    Tokens,
    Unframer,
    encode,
    to_web_decoder,
)

READ_BYTES = 1 << 18
STALE_BEAT_S = 10.0
STALE_TOKEN_S = 60.0
PROBE_TIMEOUT_S = 10.0
WARM = SamplingParams(max_tokens=0)
PROBE = SamplingParams(temperature=0.0, max_tokens=1)
# The first guess at how long an answer takes, before any has been seen.
ANSWER_GUESS_S = 10.0


class TokenStream:
    """The events of one sequence, as they come: an async iterator of lists, each holding everything since the last look."""

    def __init__(self, client: "EngineClient", seq_id: int) -> None:
        self.seq_id = seq_id
        self.has_started = False
        self.began = time.monotonic()
        self._client = client
        self._events: deque[TokenEvent] = deque()
        self._wakeup = asyncio.Event()
        self._error: EngineError | None = None
        self._is_over = False

    @property
    def place(self) -> int:
        """Its place in the queue, from 1; 0 once it has started."""
        return 0 if self.has_started else self._client.place_of(self)

    def close_thought(self) -> None:
        """Answer now. Does nothing when no thought is open."""
        self._client.send(CloseThought(self.seq_id))

    def abort(self) -> None:
        """End the sequence wherever it is. Idempotent."""
        if not self._is_over:
            self._is_over = True
            self._client.forget(self.seq_id)
            self._client.send(Abort(self.seq_id))
            self._wakeup.set()

    def push(self, event: TokenEvent) -> None:
        """Called by the client, in order."""
        self._events.append(event)
        self._wakeup.set()

    def fail(self, error: EngineError) -> None:
        """Called by the client when the engine is gone or has refused."""
        self._error = error
        self._wakeup.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[TokenEvent]:
        """Raises EngineDied, NoMemory or AdapterRefused; stops after a finish reason, or after `abort`."""
        while not self._events:
            if self._is_over:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._wakeup.clear()
            await self._wakeup.wait()
        events = list(self._events)
        self._events.clear()
        if events[-1].finish_reason is not None:
            self._is_over = True
        return events

    async def aclose(self) -> None:
        """The one door out."""
        self.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()


class EngineClient:
    """Everything the web process knows about the engine. Lives across engine restarts; the supervisor attaches each new engine."""

    def __init__(self, max_waiting: int = 64) -> None:
        self.stats: Stats | None = None
        self.has_loaded = False
        self._max_waiting = max_waiting
        self._spec: ModelSpec | None = None
        self._down = EngineDown("the model is loading", retry_after_s=5)
        self.is_paused = False
        self._writer: asyncio.StreamWriter | None = None
        self._streams: dict[int, TokenStream] = {}
        self._ids = itertools.count(1)
        self._last_beat = self._last_token = 0.0
        self._answer_s = ANSWER_GUESS_S

    # -- what is known -------------------------------------------------------------------------------------------------

    @property
    def spec(self) -> ModelSpec:
        """The loaded model. Raises EngineDown when there is none."""
        if self._spec is None:
            raise self._down
        return self._spec

    @property
    def num_running(self) -> int:
        return sum(stream.has_started for stream in self._streams.values())

    @property
    def num_waiting(self) -> int:
        return len(self._streams) - self.num_running

    @property
    def beat_age_s(self) -> float:
        """Seconds since the engine's step loop was last heard turning."""
        return time.monotonic() - self._last_beat

    @property
    def unready_reason(self) -> str:
        """Why no request should come here now; empty when ready."""
        if self._spec is None or self.is_paused:
            return str(self._down)
        if self.beat_age_s > STALE_BEAT_S:
            return f"the engine has not moved for {self.beat_age_s:.0f} s"
        if self._streams and time.monotonic() - self._last_token > STALE_TOKEN_S:
            return "requests are running, but no token was decoded in the last minute"
        return ""

    @property
    def is_ready(self) -> bool:
        return not self.unready_reason

    async def check(self) -> str:
        """Like `unready_reason`, but an idle engine that decoded nothing for a minute must prove that it still can."""
        if self.unready_reason or time.monotonic() - self._last_token <= STALE_TOKEN_S:
            return self.unready_reason
        return await self.prove()

    async def prove(self) -> str:
        """Why a token cannot be decoded right now; empty when one was."""
        if self._spec is None:
            return self.unready_reason
        tokens = list(self.spec.eos_token_ids[:1]) or [0]
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S), self.submit(tokens, PROBE, scope=CacheScope(private="probe")) as stream:
                async for _ in stream:
                    pass
        except (TimeoutError, EngineDied, EngineBusy, EngineDown):
            return "a one-token probe was not answered"
        return self.unready_reason

    def place_of(self, stream: TokenStream) -> int:
        """Place among those not started, from 1."""
        waiting = [s for s in self._streams.values() if not s.has_started]
        return waiting.index(stream) + 1 if stream in waiting else 0

    def wait_s(self, place: int) -> int:
        """Estimated seconds until the sequence at this place starts, from how long recent answers took."""
        rounds = -(-place // self.spec.max_sequences) if place else 0
        return max(1, round(rounds * self._answer_s)) if rounds else 0

    # -- what is asked -------------------------------------------------------------------------------------------------

    def submit(
        self,
        prompt_token_ids: list[int],
        sampling: SamplingParams,
        *,
        scope: CacheScope | None = None,
        thinking: Thinking | None = None,
        reuse_output: bool = True,
    ) -> TokenStream:
        """Queue a prompt. Raises EngineDown, EngineBusy or ContextTooLong at once; afterwards only the stream can fail."""
        spec = self.spec
        if self.is_paused:
            raise self._down
        limit = min(spec.context_length, spec.num_kv_tokens)
        if len(prompt_token_ids) >= limit:
            raise ContextTooLong(len(prompt_token_ids), limit)
        if len(self._streams) >= spec.max_sequences + self._max_waiting:
            raise EngineBusy(self.wait_s(self.num_waiting + 1))
        stream = TokenStream(self, next(self._ids))
        self._streams[stream.seq_id] = stream
        self.send(Submit(stream.seq_id, prompt_token_ids, sampling, scope or CacheScope(), thinking, reuse_output=reuse_output))
        return stream

    def warm(self, prompt_token_ids: list[int], scope: CacheScope) -> None:
        """Prefill these tokens when nobody needs the engine. Fire and forget."""
        if self._spec is not None and len(prompt_token_ids) < min(self._spec.context_length, self._spec.num_kv_tokens):
            self.send(Submit(next(self._ids), prompt_token_ids, WARM, scope, priority=Priority.IDLE))

    def send(self, message: ToEngine) -> None:
        """Write one message; without an engine it goes nowhere."""
        if self._writer is not None:
            self._writer.write(encode(message))

    def forget(self, seq_id: int) -> None:
        """This sequence needs no events any more."""
        self._streams.pop(seq_id, None)

    # -- the socket ----------------------------------------------------------------------------------------------------

    async def attach(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one engine until its socket closes; then fail every stream that was in it."""
        self._writer = writer
        unframer = Unframer()
        try:
            while data := await self._read(reader):
                for payload in unframer.feed(data):
                    self._dispatch(to_web_decoder.decode(payload))
        finally:
            self._writer = None
            writer.close()
            self._detach()

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.read(READ_BYTES)
        except ConnectionError:
            return b""

    def down(self, reason: str, retry_after_s: int | None, *, is_paused: bool = False) -> None:
        """From now on, until an engine is loaded, requests are refused with this; at once, when it is on purpose."""
        self._down, self.is_paused = EngineDown(reason, retry_after_s, "engine_paused" if is_paused else None), is_paused

    def _dispatch(self, message: Loaded | LoadFailed | Tokens | Beat) -> None:
        self._last_beat = time.monotonic()
        match message:
            case Tokens():
                self._last_token = self._last_beat
                for event in message.events:
                    self._deliver(event)
            case Beat():
                self.stats = message.stats
            case Loaded():
                self._spec, self.has_loaded = message.spec, True
                self._last_token = self._last_beat
            case LoadFailed():
                self.down(message.reason, None)

    def _deliver(self, event: TokenEvent) -> None:
        stream = self._streams.get(event.seq_id)
        if stream is None:
            return
        if event.num_cached >= 0:
            stream.has_started = True
        if event.finish_reason is not None:
            self.forget(event.seq_id)
            if event.finish_reason is FinishReason.NO_MEMORY:
                stream.fail(NoMemory("there is not enough memory for this request now; ask for fewer tokens or try again later"))
                return
            if event.refusal:
                stream.fail(AdapterRefused(event.refusal))
                return
            if event.finish_reason is not FinishReason.ABORT:
                self._answer_s += 0.2 * (time.monotonic() - stream.began - self._answer_s)
        stream.push(event)

    def _detach(self) -> None:
        self._spec, self.stats = None, None
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(EngineDied("the engine stopped while it worked on this answer"))
