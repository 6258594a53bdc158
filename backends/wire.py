"""The messages between the web process and the engine process: a 4-byte big-endian length, then MessagePack."""

import struct
from collections.abc import Iterator

import msgspec

from backends.protocol import CacheStats, ModelSpec
from backends.sequence import CacheScope, FinishReason, Priority, SamplingParams, Thinking

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_HEADER = struct.Struct(">I")


class Submit(msgspec.Struct, tag=True, frozen=True):
    """Web to engine: run this sequence. IDLE priority with `max_tokens` 0 is a warm-up: prefill only, no events but the last."""

    seq_id: int
    prompt_token_ids: list[int]
    sampling: SamplingParams
    scope: CacheScope
    thinking: Thinking | None = None
    priority: Priority = Priority.ACTIVE
    reuse_output: bool = True


class Abort(msgspec.Struct, tag=True, frozen=True):
    """Web to engine: end this sequence now. Unknown ids are ignored (it may have just finished)."""

    seq_id: int


class CloseThought(msgspec.Struct, tag=True, frozen=True):
    """Web to engine: answer now; close the open thought of this sequence."""

    seq_id: int


class Loaded(msgspec.Struct, tag=True, frozen=True):
    """Engine to web: the model is loaded and has decoded its first token."""

    spec: ModelSpec


class LoadFailed(msgspec.Struct, tag=True, frozen=True):
    """Engine to web: the model cannot be served; the engine exits after this."""

    reason: str


class TokenEvent(msgspec.Struct, array_like=True, frozen=True):
    """One thing that happened to a sequence: it started, it has a token, or it finished (or two of these at once).

    `num_cached` is set on the start event (>= 0) and -1 otherwise; `token_id` is -1 when there is none; a forced token has no logprob;
    `refusal` says why its adapter cannot be used, and nothing follows; `vector` is float32 of length 1, [d], from an embedding model.
    """

    seq_id: int
    token_id: int = -1
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    num_cached: int = -1
    refusal: str = ""
    vector: bytes = b""


class Tokens(msgspec.Struct, tag=True, frozen=True):
    """Engine to web: everything one step produced."""

    events: list[TokenEvent]


class Stats(msgspec.Struct, frozen=True):
    """The engine's numbers. Totals count since the engine started; `seconds_since_token` tells a stall."""

    num_waiting: int
    num_running: int
    num_idle: int
    cache: CacheStats
    prompt_tokens_total: int
    cached_tokens_total: int
    completion_tokens_total: int
    preemptions_total: int
    forced_closes_total: int
    loop_closes_total: int
    steps_total: int
    peak_memory_bytes: int


class Beat(msgspec.Struct, tag=True, frozen=True):
    """Engine to web, at least once a second while the step loop turns: a stuck loop stops beating."""

    stats: Stats


ToEngine = Submit | Abort | CloseThought
ToWeb = Loaded | LoadFailed | Tokens | Beat

_encoder = msgspec.msgpack.Encoder()


def encode(message: ToEngine | ToWeb) -> bytes:
    """One framed message."""
    payload = _encoder.encode(message)
    return _HEADER.pack(len(payload)) + payload


class WireError(Exception):
    """The other side sent something that is not a message."""


class Unframer:
    """Cuts a byte stream back into payloads, whatever the chunk edges."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield every payload that `data` completes. Raises WireError on an oversized frame."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._buffer)
            if size > MAX_MESSAGE_BYTES:
                raise WireError(f"a frame of {size} bytes")
            end = _HEADER.size + size
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield payload


to_engine_decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
to_web_decoder: msgspec.msgpack.Decoder[ToWeb] = msgspec.msgpack.Decoder(ToWeb)
