"""The MLX backend: continuous batching over per-sequence caches, chunked prefill, prefixes copied from a store."""

import time
from collections.abc import Callable

from backends.loaded_adapters import LoadedAdapters
from backends.mlx.model import BrokenOff, Caches, MlxModel
from backends.mlx.store import PrefixStore, cut, paste
from backends.pacing import HEADROOM_TOKENS, MIN_CHUNK, MIN_SHARED_WAIT, Pace
from backends.prefix_tree import PrefixTree
from backends.protocol import Admission, CacheStats, EngineOptions, OutOfRoom, StepOutput
from backends.sampling import choose
from backends.sequence import Sequence


class MlxBackend:
    """One loaded model folder behind the seam: a sequence owns its KV while it runs, and a prefix that others hold is copied in."""

    def __init__(self, options: EngineOptions) -> None:
        self._model = MlxModel(options)
        self.spec = self._model.spec
        self._pace = Pace(options.batch_tokens)
        self._adapters = LoadedAdapters(self._model, options.data_dir)
        self._store = PrefixStore()
        self._running = PrefixTree()
        self._runs: dict[int, Sequence] = {}
        self._caches: dict[int, Caches] = {}
        self._must_break_off: Callable[[], bool] = lambda: False

    def admission(self, seq: Sequence) -> Admission:
        if len(self._runs) >= self.spec.max_sequences:
            return Admission.FULL
        tokens = tuple(seq.token_ids[:-1])
        have = max(self._store.match(tokens, seq.scope).length, self._running.match(tokens, seq.scope).length)
        if self._running.announced(tokens, seq.scope) - have > MIN_SHARED_WAIT:
            return Admission.WAIT
        if len(seq.token_ids) + HEADROOM_TOKENS * len(self._runs) > self.spec.num_kv_tokens - self._num_running_tokens:
            return Admission.FULL
        if self._grown_bytes(seq) <= self._model.memory_left + self._store.num_tokens * self._model.kv_token_bytes:
            return Admission.YES
        return Admission.FULL if self._runs else Admission.REFUSED

    def start(self, seq: Sequence) -> int:
        self._adapters.load(seq.scope.adapter)
        # One prompt token stays out of the cache: sampling needs its logits.
        tokens = tuple(seq.token_ids)
        kept = self._store.match(tokens[:-1], seq.scope)
        running = self._running.match(tokens[:-1], seq.scope)
        seq.num_computed = max(kept.length, running.length)
        caches = self._model.new_caches()
        if running.handle is not None and running.length > kept.length:
            paste(caches, [cut(self._caches[running.handle], 0, running.length)])
        elif kept.length:
            paste(caches, self._store.pieces(kept))
        while len(self._store) and self._grown_bytes(seq) > self._model.memory_left:
            self._store.evict()
        self._runs[seq.seq_id], self._caches[seq.seq_id] = seq, caches
        self._running.insert(seq.seq_id, tokens, seq.scope, ready=seq.num_computed)
        return seq.num_computed

    def step(self) -> list[StepOutput]:
        adapter = self._adapters.take_turn(self._runs.values())
        chunks = self._pace.plan(self._runs.values(), adapter)
        self._make_room(sum(n for _, n in chunks))
        self._adapters.apply(adapter)
        single = [seq for seq, n in chunks if n == 1 and seq.num_computed]
        began = time.perf_counter()
        outputs = self._decode(single) if single else []
        try:
            for seq, n in chunks:
                if n > 1 or not seq.num_computed:
                    outputs += self._prefill(seq, n)
        except BrokenOff:
            return outputs
        self._pace.learn(sum(n for _, n in chunks), time.perf_counter() - began)
        return outputs

    def stop(self, seq: Sequence) -> None:
        del self._runs[seq.seq_id]
        self._running.remove(seq.seq_id)
        self._store.keep(tuple(seq.token_ids[: seq.reusable_len]), seq.scope, self._caches.pop(seq.seq_id))
        self._store.forget(self._adapters.unload_removed({run.scope.adapter for run in self._runs.values()}))

    def watch(self, should_break_off: Callable[[], bool]) -> None:
        self._must_break_off = should_break_off

    def cache_stats(self) -> CacheStats:
        used = self._num_running_tokens + self._store.num_tokens
        return CacheStats(self.spec.num_kv_tokens, used, len(self._store), self._store.num_evicted)

    def close(self) -> None:
        self._runs.clear()
        self._caches.clear()
        self._store = PrefixStore()

    # -- room --------------------------------------------------------------------------------------------------------

    @property
    def _num_running_tokens(self) -> int:
        return sum(seq.num_computed for seq in self._runs.values())

    def _grown_bytes(self, newcomer: Sequence) -> int:
        """KV that all running sequences and this one will still take, should each spend its whole budget."""
        final = [
            min(seq.num_prompt_tokens + seq.sampling.max_tokens, self.spec.context_length) - seq.num_computed
            for seq in [newcomer, *self._runs.values()]
        ]
        return sum(final) * self._model.kv_token_bytes

    def _make_room(self, count: int) -> None:
        room = self.spec.num_kv_tokens - self._num_running_tokens - count
        if room < 0:
            raise OutOfRoom
        while self._store.num_tokens > room:
            self._store.evict()

    # -- one pass ----------------------------------------------------------------------------------------------------

    def _decode(self, sequences: list[Sequence]) -> list[StepOutput]:
        rows = self._model.decode([seq.token_ids[seq.num_computed] for seq in sequences], [self._caches[seq.seq_id] for seq in sequences])
        return [choose(seq, row) for seq, row in zip(sequences, rows, strict=True) if self._advance(seq, 1)]

    def _prefill(self, seq: Sequence, count: int) -> list[StepOutput]:
        look = self._must_break_off if count >= MIN_CHUNK else None
        tokens = seq.token_ids[seq.num_computed : seq.num_computed + count]
        logits = self._model.prefill(tokens, self._caches[seq.seq_id], look)
        return [choose(seq, logits())] if self._advance(seq, count) else []

    def _advance(self, seq: Sequence, count: int) -> bool:
        """These tokens have KV now; says whether the next one is to be sampled."""
        seq.num_computed += count
        if seq.num_computed <= seq.num_prompt_tokens:
            self._running.advance(seq.seq_id, seq.num_computed)
        return seq.num_uncomputed == 0 and seq.sampling.max_tokens > 0
