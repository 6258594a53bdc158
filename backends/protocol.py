"""The seam: what a backend and a tokenizer must do, and how the engine room fails."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from backends.sequence import Sequence


class EngineError(Exception):
    """Base of everything the engine room raises on purpose.

    EngineError
    ├── ModelLoadError     the model file cannot be served (broken, missing, does not fit)
    ├── ContextTooLong     prompt does not fit the context
    ├── EngineBusy         the queue is full
    ├── NoMemory           prompt and budget would not fit the memory that is left now
    ├── EngineDown         no engine is running; says why
    ├── EngineDied         the engine ended while this request was in it
    ├── EmptyAnswer        the model ended without a word
    └── AdapterRefused     a LoRA adapter cannot be used with this model; says why
    """


class ModelLoadError(EngineError):
    """The model cannot be served; the message names the file and the cause."""


class ContextTooLong(EngineError):
    """A prompt of `num_tokens` does not fit `limit` tokens."""

    def __init__(self, num_tokens: int, limit: int) -> None:
        super().__init__(f"the prompt has {num_tokens} tokens and this model's context holds {limit}")
        self.num_tokens = num_tokens
        self.limit = limit


class EngineBusy(EngineError):
    """The waiting queue is full; try again after `retry_after_s` seconds."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("the queue is full")
        self.retry_after_s = retry_after_s


class NoMemory(EngineError):
    """The engine refused a request before computing anything; something smaller, or the same later, may pass."""

    retry_after_s = 10


class EngineDown(EngineError):
    """No engine is running now. `retry_after_s` is None when it will not come back by itself."""

    def __init__(self, reason: str, retry_after_s: int | None = None, code: str | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.retry_after_s = retry_after_s


class EngineDied(EngineError):
    """The engine process ended while it worked on this request."""


class EmptyAnswer(EngineError):
    """The model ended its turn without an answer."""


class AdapterRefused(EngineError):
    """A LoRA adapter cannot be used with this model; the message is one clause that says why. Whatever runs goes on."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a model is loaded. Zero means "let the engine choose": the trained context, four of them of KV room, all cores.

    `num_kv_tokens` is shared by all sequences and kept prefixes; `batch_tokens` bounds one forward pass; `gpu_layers` -1 offloads
    everything that fits; `flash_attention` None means off for a small model on a CPU and llama.cpp's choice elsewhere; `kv_type` is f32,
    f16 or q8_0 (MLX keeps what is not q8_0 in the type that the model computes in).
    `data_dir` holds the folders `adapters` and `cache`, empty means neither;
    `prompt_lookup` lets the engine guess ahead where that is faster; `draft_model` is a second GGUF file that guesses where the text
    itself has no hint, empty meaning none (llama.cpp only). With `embeds` every sequence ends with a vector instead of a token.

    For MLX alone: `mlx_batch` lets a GPU answer several at once (Metal has panicked under concurrent streams), `set_wired_limit` pins the
    memory (panics again), `memory_limit_bytes` is what the process may take, 0 meaning what the machine can spare. It has no use
    for `threads` and `flash_attention`, and of `gpu_layers` it only knows none and all.
    """

    path: str
    name: str
    max_sequences: int = 16
    context_length: int = 0
    num_kv_tokens: int = 0
    batch_tokens: int = 512
    threads: int = 0
    gpu_layers: int = -1
    flash_attention: bool | None = None
    kv_type: str = "f16"
    mlx_batch: bool = False
    set_wired_limit: bool = False
    memory_limit_bytes: int = 0
    data_dir: str = ""
    prompt_lookup: bool = True
    draft_model: str = ""
    embeds: bool = False


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is loaded. `context_length` in tokens bounds one sequence; `num_kv_tokens` is the room shared by all of them."""

    name: str
    engine: str
    engine_version: str
    sha256: str
    quantization: str
    context_length: int
    num_kv_tokens: int
    max_sequences: int
    eos_token_ids: tuple[int, ...]
    num_parameters: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class StepOutput:
    """One sampled token of one sequence, or its `vector`. Logprobs are natural logs of the unmodified distribution."""

    seq: Sequence
    token_id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()
    vector: bytes = b""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """KV room in tokens: held by running sequences or kept as prefixes, out of all there is.

    `num_guessed` tokens had their KV computed before they were drawn; `num_kept` of them were then drawn.
    """

    num_kv_tokens: int
    num_used: int
    num_entries: int
    num_evicted: int
    num_guessed: int = 0
    num_kept: int = 0


class Admission(Enum):
    """May a sequence start now? WAIT: a running sequence is computing its prefix; FULL: no room until something ends; REFUSED: memory
    for its prompt and budget is missing though nothing runs."""

    YES = auto()
    WAIT = auto()
    FULL = auto()
    REFUSED = auto()


class OutOfRoom(EngineError):
    """The KV cache cannot hold the next step, even with every unused prefix evicted."""


class Backend(Protocol):
    """One loaded model. Every method runs on the engine thread, and only there."""

    spec: ModelSpec

    def admission(self, seq: Sequence) -> Admission:
        """Is there room for `seq` now? Changes nothing."""

    def start(self, seq: Sequence) -> int:
        """Claim a place, reuse the longest cached prefix, and return how many tokens were reused.

        Raises AdapterRefused, with nothing changed, when the sequence's adapter cannot be used.
        """

    def step(self) -> Iterable[StepOutput]:
        """One forward pass over the running sequences, those of one adapter at a time. Gives at least one token to each that decodes.

        Tokens are drawn as they are taken: the caller brings each into its sequence, or ends the sequence, before it takes the next.
        Raises OutOfRoom, with nothing computed, when the running sequences no longer fit together.
        """

    def stop(self, seq: Sequence) -> None:
        """Release the place; the sequence's reusable KV stays as a prefix until evicted."""

    def watch(self, should_break_off: Callable[[], bool]) -> None:
        """During a long forward pass, call this now and then; when it says True, break the pass off.

        What the pass had not finished counts as not computed and is done again.
        """

    def cache_stats(self) -> CacheStats: ...

    def close(self) -> None: ...


class Tokenizer(Protocol):
    """Text to token ids and back, in the web process, and in the engine process for grammars. Safe to call from several threads."""

    vocab_size: int
    chat_template: str | None
    eos_token_ids: tuple[int, ...]
    bos_text: str
    """The special token that begins a text, spelled out; empty when the model has none."""
    eos_text: str
    """The special token that ends a turn, spelled out; empty when the model has none."""
    adds_bos: bool
    """Whether every text must begin with it, printed by the template or not."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of `text`. With `special`, the spelled-out special tokens become their single ids; without, they are plain text."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes this token adds to the text; empty for control tokens such as `<|im_end|>`, spelled out for `</think>`."""

    def special_id(self, text: str) -> int | None:
        """The id of the single token spelled `text`, or None."""

    def special_texts(self) -> tuple[str, ...]:
        """Spellings of all special tokens, for escaping visitor text."""
