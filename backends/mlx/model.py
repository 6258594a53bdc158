"""An MLX model: loading, its memory, and forward passes over per-sequence caches. Knows arrays, not requests."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache
from mlx_lm.utils import get_total_parameters, load_model

from backends.adapter import PARTS, read_pairs
from backends.fit import this_machine
from backends.gguf_file import Tensor
from backends.mlx.folder import ModelFolder
from backends.protocol import AdapterRefused, EngineOptions, ModelLoadError, ModelSpec
from backends.sampling import Vector

KV_BITS = 8
# One entry a layer; each is an mlx_lm KVCache or QuantizedKVCache of one sequence.
Caches = list[Any]
# Where each linear layer stands, a module and a name in it, and what stands there while the adapter is applied.
Adapter = list[tuple[Any, str, Any]]


class BrokenOff(Exception):
    """A forward pass ended early because somebody in it has gone; its caches are as before."""


class MlxModel:
    """One model on MLX's default device. Use it on the thread that made it: MLX ties arrays to it."""

    def __init__(self, options: EngineOptions) -> None:
        self._folder = ModelFolder(options.path)
        if options.gpu_layers == 0:
            mx.set_default_device(mx.cpu)
        self.is_on_gpu = mx.default_device() == mx.gpu
        self.memory_limit = options.memory_limit_bytes or this_machine().budget_bytes
        mx.set_memory_limit(self.memory_limit)
        if options.set_wired_limit and self.is_on_gpu:
            mx.set_wired_limit(self.memory_limit)
        self._room_beside(sum(path.stat().st_size for path in self._folder.path.glob("model*.safetensors")))
        self._adapter: Adapter = []
        self._is_quantized = options.kv_type == "q8_0"
        try:
            self._model = self._load()
            caches = self.new_caches()
            mx.eval(self._model(mx.array([[0]]), cache=caches))
        except (ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
            raise ModelLoadError(f"{options.path} could not be loaded: {' '.join(str(error).split())[:300]}") from error
        self.kv_token_bytes = max(1, sum(int(cache.nbytes) for cache in caches) // int(caches[0].step))
        self.spec = self._describe(options)

    def _room_beside(self, weight_bytes: int) -> int:
        """Bytes that weights of this size leave. Raises ModelLoadError when there are none, before a driver finds out."""
        if weight_bytes >= self.memory_limit:
            sizes = f"its weights take {weight_bytes / 1e9:.1f} GB and kefu may use {self.memory_limit / 1e9:.1f} GB"
            raise ModelLoadError(f"{self._folder.path} does not fit this machine: {sizes}")
        return self.memory_limit - weight_bytes

    def _load(self) -> Any:
        model, _ = load_model(self._folder.path)
        kinds = {type(cache).__name__ for cache in make_prompt_cache(model)} - {KVCache.__name__}
        if kinds:
            raise ModelLoadError(f"{self._folder.path} keeps its state in a {kinds.pop()}, which cannot be cut and shared between requests")
        if not self.is_on_gpu:
            # CPU kernels round half precision differently by the batch's shape, which answers would show.
            model.set_dtype(mx.float32)
        mx.eval(model.parameters())
        return model

    def _describe(self, options: EngineOptions) -> ModelSpec:
        folder = self._folder
        weight_bytes = sum(int(array.nbytes) for _, array in tree_flatten(self._model.parameters()))
        trained = int(folder.config.get("max_position_embeddings") or 4096)
        context_length = min(options.context_length or trained, trained)
        room = self._room_beside(weight_bytes) // self.kv_token_bytes
        num_kv_tokens = options.num_kv_tokens or min(context_length * 4, room)
        quantization = folder.config.get("quantization") or {}
        return ModelSpec(
            name=options.name,
            engine="mlx",
            engine_version=f"mlx-lm {version('mlx-lm')}, mlx {version('mlx')}",
            sha256=folder.sha256(),
            quantization=f"{quantization['bits']} bits" if "bits" in quantization else str(folder.config.get("torch_dtype", "")),
            context_length=min(context_length, num_kv_tokens),
            num_kv_tokens=num_kv_tokens,
            max_sequences=options.max_sequences if options.mlx_batch or not self.is_on_gpu else 1,
            eos_token_ids=folder.eos_token_ids,
            num_parameters=int(get_total_parameters(self._model)),
            weight_bytes=weight_bytes,
        )

    @property
    def memory_left(self) -> int:
        """Bytes that this process may still take; MLX's own count and the system's differ, and the larger one kills."""
        return self.memory_limit - max(int(mx.get_active_memory()), _footprint() - int(mx.get_cache_memory()))

    def new_caches(self) -> Caches:
        """Empty caches for one sequence."""
        caches: Caches = make_prompt_cache(self._model)
        args = self._model.args
        width = getattr(args, "head_dim", None) or args.hidden_size // args.num_attention_heads
        return [QuantizedKVCache(64 if width % 64 == 0 else 32, KV_BITS) for _ in caches] if self._is_quantized else caches

    def load_adapter(self, path: Path) -> Adapter:
        """See `Host`."""
        pairs = read_pairs(path, self._folder.path)
        if sum(matrix.nbytes for pair in pairs.values() for matrix in pair) > self.memory_left:
            raise AdapterRefused("no memory is left for it")
        adapter: Adapter = []
        for i, layer in enumerate(self._model.layers):
            for part, name in PARTS.items():
                block, _, linear = part.partition(".")
                if pair := pairs.get(f"blk.{i}.{name}.weight"):
                    adapter.append((layer[block], linear, _Adapted(layer[block][linear], *pair, layer.input_layernorm.weight.dtype)))
        return adapter

    def apply_adapter(self, weights: Adapter | None) -> None:
        """See `Host`. Without one the model has the very modules that it came with."""
        for block, linear, adapted in self._adapter:
            block[linear] = adapted.plain
        self._adapter = weights or []
        for block, linear, adapted in self._adapter:
            block[linear] = adapted

    def free_adapter(self, weights: Adapter) -> None:
        weights.clear()

    def decode(self, tokens: list[int], caches: list[Caches]) -> Vector:
        """One token for each of several sequences: logits float32 [len(tokens), vocab_size]."""
        layers = caches[0] if len(caches) == 1 else [_Together(list(layer)) for layer in zip(*caches, strict=True)]
        return self._logits(self._model(mx.array(tokens)[:, None], cache=layers))

    def prefill(self, tokens: list[int], caches: Caches, look: Callable[[], bool] | None) -> Callable[[], Vector]:
        """Compute some tokens of one sequence; the result gives the logits [vocab_size] after the last one, which few callers need.

        `look` is asked between layers; raises BrokenOff when it says True.
        """
        before = caches[0].offset
        try:
            logits = self._model(mx.array(tokens)[None], cache=[_Watched(cache, look) for cache in caches] if look else caches)
        except BrokenOff:
            for cache in caches:
                cache.trim(cache.offset - before)
            raise
        mx.eval([cache.keys_and_values() for cache in caches])
        return lambda: self._logits(logits)[0]

    @staticmethod
    def _logits(logits: mx.array) -> Vector:
        return np.array(logits[:, -1].astype(mx.float32))


class _Adapted:
    """A linear layer of the model, shared and left as it is, plus B A x."""

    def __init__(self, plain: Any, a: Tensor, b: Tensor, dtype: mx.Dtype) -> None:
        self.plain = plain
        self.a, self.b = (mx.array(np.ascontiguousarray(matrix.T)).astype(dtype) for matrix in (a, b))

    def __call__(self, x: mx.array) -> Any:
        return self.plain(x) + (x @ self.a) @ self.b


class _Together:
    """One layer's caches of several sequences as one, for a pass over one token each: the model sees [sequences, heads, 1, width].

    Every sequence keeps its own arrays, so that joining and leaving cost nothing and memory is what the sequences really hold; they are
    put side by side, padded on the right, for one layer at a time.
    """

    def __init__(self, caches: list[Any]) -> None:
        self._caches = caches
        lengths = [cache.offset for cache in caches]
        self._width = max(lengths) + 1
        self.offset = mx.array(lengths)
        if hasattr(caches[0], "bits"):
            self.bits, self.group_size = caches[0].bits, caches[0].group_size

    def make_mask(self, *_: object, **__: object) -> mx.array:
        return (mx.arange(self._width)[None] <= self.offset[:, None])[:, None, None]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        rows = [cache.update_and_fetch(keys[i : i + 1], values[i : i + 1]) for i, cache in enumerate(self._caches)]
        return tree_map(lambda *parts: mx.concatenate([self._pad(part) for part in parts]), rows[0], *rows[1:])

    def _pad(self, part: mx.array) -> mx.array:
        missing = self._width - part.shape[2]
        return mx.pad(part, [(0, 0), (0, 0), (0, missing), (0, 0)]) if missing else part


class _Watched:
    """A layer's cache that looks up before it lets the pass go on."""

    def __init__(self, cache: Any, look: Callable[[], bool]) -> None:
        self._cache = cache
        self._look = look

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        mx.eval(keys)
        if self._look():
            raise BrokenOff
        return self._cache.update_and_fetch(keys, values)


def _footprint() -> int:
    """Bytes that the system counts against this process."""
    if sys.platform == "darwin":
        # proc_pid_rusage, RUSAGE_INFO_V0 (sys/resource.h): ri_phys_footprint is the eighth 64-bit word after the 16-byte uuid.
        words = (ctypes.c_uint64 * 32)()
        ctypes.CDLL("libproc.dylib").proc_pid_rusage(os.getpid(), 0, ctypes.byref(words))
        return int(words[9])
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
