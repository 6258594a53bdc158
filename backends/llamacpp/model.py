"""A GGUF model and its context in llama.cpp: loading, one batch, its logits. Knows tensors and cells, not requests."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import llama_cpp as lib
import numpy as np
import numpy.typing as npt

from backends.fit import KV_BYTES
from backends.protocol import AdapterRefused, EngineError, EngineOptions, ModelLoadError, ModelSpec

GGUF_MAGIC = b"GGUF"
MAX_CACHED_SEQUENCES = 64
LOOK_EVERY_S = 0.05
LONG_PASS_TOKENS = 64
NEVER_LOOK = lib.ggml_abort_callback()


class DecodeFailed(EngineError):
    """llama_decode returned an error; the engine cannot go on."""


class Decoded(IntEnum):
    """How a forward pass ended, in llama_decode's own numbers."""

    DONE = 0
    NO_ROOM = 1
    BROKEN_OFF = 2


@dataclass(frozen=True, slots=True)
class Row:
    """One token of a batch: who (llama.cpp sequence id), which, where, and whether its logits are wanted."""

    seq_id: int
    token_id: int
    position: int
    wants_logits: bool


KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
KV_MEMORY_SHARE = 0.25
FLASH_AUTO, FLASH_OFF = -1, 0
SMALL_MODEL_BYTES = 64 * 1024 * 1024


def check_gguf(path: Path) -> None:
    """Refuse what is plainly no GGUF before llama.cpp parses it. Raises ModelLoadError naming the file."""
    if not path.is_file():
        raise ModelLoadError(f"{path} does not exist or is not a file")
    with path.open("rb") as file:
        head = file.read(8)
    if head[:4] != GGUF_MAGIC:
        raise ModelLoadError(f"{path} is not a GGUF file (it does not start with 'GGUF')")
    if len(head) < 8 or int.from_bytes(head[4:8], "little") not in (2, 3):
        raise ModelLoadError(f"{path} is a GGUF file of an unknown version; versions 2 and 3 can be read")


class LogSink:
    """Takes over llama.cpp's log and keeps its last error lines, so that a failure can say why. Nothing is printed."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._callback = lib.llama_log_callback(self._on_line)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    @property
    def why(self) -> str:
        """The last errors, as one clause."""
        return "; ".join(self.errors) or "llama.cpp gave no reason"

    def _on_line(self, level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
        if level == 4:
            self.errors = [*self.errors[-4:], text.decode("utf-8", "replace").strip()]


@functools.cache
def log_sink() -> LogSink:
    """The one sink of this process: llama.cpp keeps a pointer to its callback for good, so it must never be collected."""
    return LogSink()


class LlamaModel:
    """One model, one context with a unified KV cache, one reusable batch."""

    def __init__(self, options: EngineOptions) -> None:
        path = Path(options.path)
        check_gguf(path)
        self._log = log_sink()
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = options.gpu_layers
        self._model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ModelLoadError(f"{path} could not be loaded: {self._log.why}")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.vocab_size = lib.llama_vocab_n_tokens(self._vocab)
        self._context = self._make_context(options)
        self._memory = lib.llama_get_memory(self._context)
        self.spec = self._describe(options, path)
        self.layout = f"{options.kv_type} {options.flash_attention}"
        self._batch = _Batch(options.batch_tokens)
        self._look = NEVER_LOOK

    def _make_context(self, options: EngineOptions) -> lib.llama_context_p:
        trained = lib.llama_model_n_ctx_train(self._model)
        self.context_length = min(options.context_length or trained, trained)
        num_cells = options.num_kv_tokens or min(self.context_length * 4, self._affordable_cells(options.kv_type))
        params = self._params()
        params.n_ctx = -(-num_cells // 256) * 256
        params.n_batch = params.n_ubatch = options.batch_tokens
        # Averaging a text's tokens wants a batch that the sequences divide.
        params.n_seq_max = options.max_sequences + (0 if options.embeds else MAX_CACHED_SEQUENCES)
        params.kv_unified = True
        # On a CPU plain attention gives the same bits whatever the batch's shape, but it pays for every occupied cell of the cache.
        is_small = not lib.llama_supports_gpu_offload() and lib.llama_model_size(self._model) < SMALL_MODEL_BYTES
        default = FLASH_OFF if is_small else FLASH_AUTO
        params.flash_attn_type = default if options.flash_attention is None else int(options.flash_attention)
        params.type_k = params.type_v = KV_TYPES[options.kv_type]
        params.n_threads = params.n_threads_batch = options.threads or self._threads()
        params.no_perf = True
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            raise ModelLoadError(f"{options.path} was read, but a context of {params.n_ctx} tokens could not be made: {self._log.why}")
        return context

    def _params(self) -> lib.llama_context_params:
        """What the context begins with, before the options are read."""
        return lib.llama_context_default_params()

    def _threads(self) -> int:
        """One per core this process may use, but one in all for a model so small that threads would mostly wait for each other."""
        if lib.llama_model_size(self._model) < SMALL_MODEL_BYTES:
            return 1
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def _affordable_cells(self, kv_type: str) -> int:
        """Cells that fit KV_MEMORY_SHARE of the machine's memory: keys and values of every layer for one token each."""
        model = self._model
        width = lib.llama_model_n_embd(model) // lib.llama_model_n_head(model) * lib.llama_model_n_head_kv(model)
        cell_bytes = 2 * lib.llama_model_n_layer(model) * width * KV_BYTES[kv_type]
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return max(1024, int(memory * KV_MEMORY_SHARE / cell_bytes))

    def _describe(self, options: EngineOptions, path: Path) -> ModelSpec:
        num_cells = lib.llama_n_ctx(self._context)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ModelSpec(
            name=options.name,
            engine="llama.cpp",
            engine_version=f"llama-cpp-python {lib.__version__}",
            sha256=digest,
            quantization=self._meta("general.file_type"),
            context_length=min(self.context_length, num_cells),
            num_kv_tokens=num_cells,
            max_sequences=options.max_sequences,
            eos_token_ids=self.eos_token_ids(),
            num_parameters=lib.llama_model_n_params(self._model),
            weight_bytes=lib.llama_model_size(self._model),
        )

    def _meta(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        length = lib.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length >= 0 else ""

    def vocabulary(self) -> list[bytes]:
        """What each token spells, in the encoding of the vocabulary's own kind; nothing for places that no token uses."""
        vocab = self._vocab
        unused = [lib.llama_vocab_get_attr(vocab, t) & lib.LLAMA_TOKEN_ATTR_UNUSED for t in range(self.vocab_size)]
        return [b"" if is_unused else lib.llama_vocab_get_text(vocab, t) for t, is_unused in enumerate(unused)]

    def eos_token_ids(self) -> tuple[int, ...]:
        """Every end-of-generation token of the vocabulary."""
        return tuple(t for t in range(self.vocab_size) if lib.llama_vocab_is_eog(self._vocab, t))

    def share(self, source: int, target: int, length: int) -> None:
        """`target` sees the first `length` cells of `source`; nothing is copied in a unified cache."""
        lib.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def trim(self, seq_id: int, length: int) -> None:
        """Drop a sequence id's cells from position `length` on."""
        if not lib.llama_memory_seq_rm(self._memory, seq_id, length, -1):
            raise DecodeFailed(f"the cache would not drop positions from {length} on")

    def watch(self, should_break_off: Callable[[], bool]) -> None:
        """Call this between the nodes of a long forward pass, at most every LOOK_EVERY_S."""
        next_look = 0.0

        def look(_data: ctypes.c_void_p) -> bool:
            nonlocal next_look
            now = time.monotonic()
            if now < next_look:
                return False
            next_look = now + LOOK_EVERY_S
            return should_break_off()

        self._look = lib.ggml_abort_callback(look)

    def decode(self, rows: Items[Row]) -> Decoded:
        """One forward pass; nothing is computed unless it is DONE. Raises DecodeFailed on anything worse than no room."""
        # Being asked costs about a microsecond a node: too much for the short passes of a small model, which end soon anyway.
        look = self._look if len(rows) >= LONG_PASS_TOKENS else NEVER_LOOK
        lib.llama_set_abort_callback(self._context, look, None)
        code = lib.llama_decode(self._context, self._batch.fill(rows))
        if code not in (0, 1, 2):
            raise DecodeFailed(f"llama_decode returned {code}: {self._log.why}")
        # On a GPU llama_decode returns early; whoever times a pass means all of it.
        lib.llama_synchronize(self._context)
        return Decoded(code)

    def time_pass(self, num_rows: int) -> float:
        """Seconds of a forward pass over so many rows of one sequence; its cells are dropped again. Only while nothing is cached."""
        rows, seconds = [Row(0, 0, i, True) for i in range(num_rows)], []
        for _ in range(2):
            began = time.perf_counter()
            self.decode(rows)
            seconds.append(time.perf_counter() - began)
            self.trim(0, 0)
        return min(seconds)

    def state_bytes(self, seq_id: int) -> int:
        """Size of a sequence id's KV on disk."""
        return int(lib.llama_state_seq_get_size(self._context, seq_id))

    def save_state(self, seq_id: int, tokens: tuple[int, ...], path: Path) -> bool:
        """Write a sequence id's KV and the tokens it stands for."""
        array = (lib.llama_token * len(tokens))(*tokens)
        return bool(lib.llama_state_seq_save_file(self._context, str(path).encode(), seq_id, array, len(tokens)))

    def load_state(self, seq_id: int, tokens: tuple[int, ...], path: Path) -> bool:
        """Read KV under a free sequence id. False, with the id still free, when the file does not hold exactly these tokens."""
        array, count = (lib.llama_token * len(tokens))(), ctypes.c_size_t()
        if lib.llama_state_seq_load_file(self._context, str(path).encode(), seq_id, array, len(tokens), ctypes.byref(count)):
            if tuple(array) == tokens and count.value == len(tokens):
                return True
            self.trim(seq_id, 0)
        return False

    def logits(self, num_outputs: int) -> npt.NDArray[np.float32]:
        """Logits of the last batch's wanted rows, in batch order: float32 [num_outputs, vocab_size]. Valid until the next decode."""
        pointer = lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(num_outputs * self.vocab_size,)).reshape(num_outputs, self.vocab_size)

    def load_adapter(self, path: Path) -> lib.llama_adapter_lora_p:
        """See `Host`. llama.cpp itself checks that the tensors fit the model."""
        self._log.errors.clear()
        adapter = lib.llama_adapter_lora_init(self._model, str(path).encode())
        if not adapter:
            raise AdapterRefused(self._log.why)
        return adapter

    def apply_adapter(self, weights: lib.llama_adapter_lora_p | None) -> None:
        adapters = (lib.llama_adapter_lora_p_ctypes * 1)(weights) if weights else None
        lib.llama_set_adapters_lora(self._context, adapters, 1 if weights else 0, (ctypes.c_float * 1)(1.0))

    def free_adapter(self, weights: lib.llama_adapter_lora_p) -> None:
        lib.llama_adapter_lora_free(weights)

    def close(self) -> None:
        """Free context and model. Idempotent."""
        if self._context:
            lib.llama_free(self._context)
            lib.llama_model_free(self._model)
            self._context = self._model = None


class _Batch:
    """A llama_batch over arrays of our own, so that filling it costs one vector assignment per column."""

    def __init__(self, capacity: int) -> None:
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._seq_ids = np.zeros(capacity, np.int32)
        self._counts = np.ones(capacity, np.int32)
        self._logits = np.zeros(capacity, np.int8)
        base = self._seq_ids.ctypes.data
        self._pointers = (ctypes.POINTER(lib.llama_seq_id) * capacity)()
        for i in range(capacity):
            self._pointers[i] = ctypes.cast(base + 4 * i, ctypes.POINTER(lib.llama_seq_id))
        self._batch = lib.llama_batch(n_tokens=0)
        self._batch.token = self._tokens.ctypes.data_as(ctypes.POINTER(lib.llama_token))
        self._batch.pos = self._positions.ctypes.data_as(ctypes.POINTER(lib.llama_pos))
        self._batch.n_seq_id = self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self._batch.seq_id = self._pointers
        self._batch.logits = self._logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))

    def fill(self, rows: Items[Row]) -> lib.llama_batch:
        count = len(rows)
        self._batch.n_tokens = count
        self._tokens[:count] = [row.token_id for row in rows]
        self._positions[:count] = [row.position for row in rows]
        self._seq_ids[:count] = [row.seq_id for row in rows]
        self._logits[:count] = [row.wants_logits for row in rows]
        return self._batch
