"""The llama.cpp backend: continuous batching with chunked prefill over one unified KV cache with shared prefixes."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from backends.llamacpp.cells import CellLedger
from backends.llamacpp.draft import Draft
from backends.llamacpp.model import MAX_CACHED_SEQUENCES, Decoded, LlamaModel, Row
from backends.llamacpp.saved import MIN_TOKENS, SavedPrefixes
from backends.loaded_adapters import LoadedAdapters
from backends.pacing import HEADROOM_TOKENS, MIN_SHARED_WAIT, Pace
from backends.prefix_tree import PrefixTree, Tokens
from backends.protocol import Admission, CacheStats, EngineOptions, OutOfRoom, StepOutput
from backends.sampling import choose
from backends.sequence import CacheScope, Sequence
from backends.speculation import FIRST_GUESS, MAX_SEQUENCES, Gain, Guesser, Lookup


@dataclass(slots=True, eq=False)
class _Run:
    """A running sequence's place: its llama.cpp sequence id, and what is guessed of it in this pass, by whom."""

    seq: Sequence
    handle: int
    lookup: Guesser = field(default_factory=Lookup)
    guess: list[int] = field(default_factory=list)
    guesser: Guesser | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    """A kept prefix."""

    tokens: Tokens
    scope: CacheScope


class LlamaBackend:
    """One loaded GGUF model behind the seam. See `Backend` for the contract."""

    def __init__(self, options: EngineOptions) -> None:
        self._model = LlamaModel(options)
        self.spec = self._model.spec
        self._pace = Pace(options.batch_tokens)
        self._cells = CellLedger(self.spec.num_kv_tokens)
        self._tree = PrefixTree()
        self._handles = list(range(options.max_sequences + MAX_CACHED_SEQUENCES))
        self._runs: dict[int, _Run] = {}
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._num_evicted = 0
        self._adapters = LoadedAdapters(self._model, options.data_dir)
        self._num_guessed = self._num_kept = 0
        times_s = [self._model.time_pass(n) for n in (1, 1 + FIRST_GUESS)] if options.prompt_lookup or options.draft_model else []
        self._gain = Gain(*times_s) if options.prompt_lookup else None
        self._draft = Draft(options, self._model, *times_s) if options.draft_model else None
        self._saved = SavedPrefixes(self._model, Path(options.data_dir) / "cache") if options.data_dir else None
        self._max_batch = options.batch_tokens

    def admission(self, seq: Sequence) -> Admission:
        if len(self._runs) >= self.spec.max_sequences:
            return Admission.FULL
        tokens = tuple(seq.token_ids[:-1])
        match = self._tree.match(tokens, seq.scope)
        if self._tree.announced(tokens, seq.scope) - match.length > MIN_SHARED_WAIT:
            return Admission.WAIT
        newly_pinned = self._cells.num_unpinned(match.handle, match.length) if match.handle is not None else 0
        needed = newly_pinned + len(seq.token_ids) - match.length
        headroom = HEADROOM_TOKENS * len(self._runs)
        room = self._cells.num_cells - self._cells.num_pinned
        return Admission.YES if needed + headroom <= room else Admission.FULL

    def start(self, seq: Sequence) -> int:
        self._adapters.load(seq.scope.adapter)
        # One prompt token stays out of the cache: sampling needs its logits.
        tokens = tuple(seq.token_ids)
        match = self._tree.match(tokens[:-1], seq.scope)
        if match.length < min(seq.scope.public_len, len(tokens) - 1) and self._restore(tokens, seq.scope):
            match = self._tree.match(tokens[:-1], seq.scope)
        if match.handle is not None:
            self._touch(tokens, seq.scope, match.handle)
        handle = self._take_handle(keep=match.handle)
        if match.handle is not None:
            self._model.share(match.handle, handle, match.length)
            self._cells.share(match.handle, handle, match.length)
        self._cells.pin(handle)
        self._tree.insert(handle, tokens, seq.scope, ready=match.length)
        seq.num_computed = match.length
        self._runs[seq.seq_id] = _Run(seq, handle)
        return match.length

    def step(self) -> Iterable[StepOutput]:
        adapter = self._adapters.take_turn(run.seq for run in self._runs.values())
        chunks = [(self._runs[seq.seq_id], n) for seq, n in self._pace.plan((run.seq for run in self._runs.values()), adapter)]
        count = sum(n for _, n in chunks)
        if not count:
            return []
        self._guess([run for run, _ in chunks], count)
        self._make_room(count)
        rows = [row for run, n in chunks for row in self._rows(run, n)]
        self._adapters.apply(adapter)
        began = time.perf_counter()
        match self._model.decode(rows):
            case Decoded.NO_ROOM:
                raise OutOfRoom
            case Decoded.BROKEN_OFF:
                return []
        seconds = time.perf_counter() - began
        self._pace.learn(count, seconds)
        for run, n in chunks:
            self._cells.grow(run.handle, n + len(run.guess))
            run.seq.num_computed += n
            if run.seq.num_computed <= run.seq.num_prompt_tokens:
                self._tree.advance(run.handle, run.seq.num_computed)
        drawing = [run for run, _ in chunks if run.seq.num_uncomputed == 0 and run.seq.sampling.max_tokens]
        return self._draw(drawing, seconds if count == len(drawing) <= MAX_SEQUENCES else None)

    def stop(self, seq: Sequence) -> None:
        run = self._runs.pop(seq.seq_id)
        self._cells.unpin(run.handle)
        self._keep(run.handle, tuple(seq.token_ids[: seq.reusable_len]), seq.scope)
        gone = self._adapters.unload_removed({run.seq.scope.adapter for run in self._runs.values()})
        for handle in [handle for handle, entry in self._entries.items() if entry.scope.adapter in gone]:
            self._evict(handle)

    def watch(self, should_break_off: Callable[[], bool]) -> None:
        self._model.watch(should_break_off)

    def cache_stats(self) -> CacheStats:
        used = self._cells.num_cells - self._cells.num_free
        return CacheStats(self._cells.num_cells, used, len(self._entries), self._num_evicted, self._num_guessed, self._num_kept)

    def close(self) -> None:
        """Save the public prefixes that nobody's conversation is part of, and free everything."""
        for handle, entry in self._entries.items() if self._saved else ():
            if self._saved and MIN_TOKENS <= len(entry.tokens) <= entry.scope.public_len:
                self._saved.save(handle, entry.tokens, entry.scope)
        self._entries.clear()
        self._runs.clear()
        self._model.close()
        if self._draft is not None:
            self._draft.close()

    # -- one batch ---------------------------------------------------------------------------------------------------

    def _rows(self, run: _Run, count: int) -> list[Row]:
        seq = run.seq
        start, stop = seq.num_computed, seq.num_computed + count
        last = len(seq.token_ids) - 1 if seq.sampling.max_tokens else -1
        rows = [Row(run.handle, seq.token_ids[i], i, i == last) for i in range(start, stop)]
        return rows + [Row(run.handle, token_id, stop + i, True) for i, token_id in enumerate(run.guess)]

    def _guess(self, runs: list[_Run], count: int) -> None:
        """Guess ahead for a few sequences that all decode, into cells that are free anyway: the lookup first, the draft for a lone one."""
        for run in runs:
            run.guess, run.guesser = [], None
        if len(self._runs) > MAX_SEQUENCES or any(run.seq.num_uncomputed > 1 for run in runs):
            return
        room = min(self._cells.num_free, self._max_batch) - count
        if self._gain is not None:
            guesses = [run.lookup.guess(run.seq.token_ids, self._num_left(run.seq)) for run in runs]
            if 0 < sum(map(len, guesses)) <= room and self._gain.pays():
                for run, guess in zip(runs, guesses, strict=True):
                    run.guess, run.guesser = guess, run.lookup
                return
        if self._draft is not None and len(self._runs) == 1 and self._draft.gain.pays():
            seq = runs[0].seq
            runs[0].guess, runs[0].guesser = self._draft.guess(seq.token_ids, min(room, self._num_left(seq))), self._draft

    def _num_left(self, seq: Sequence) -> int:
        """How many tokens may still follow the one that is drawn next."""
        return min(seq.sampling.max_tokens - seq.num_completion_tokens, self.spec.context_length - len(seq.token_ids)) - 1

    def _draw(self, runs: list[_Run], seconds: float | None) -> Iterator[StepOutput]:
        """Draw token by token, as the caller takes them: what follows a guess is drawn only once the sequence has taken the guess."""
        logits = self._model.logits(sum(1 + len(run.guess) for run in runs)) if runs else ()
        first = num_guessed = num_kept = 0
        for run in runs:
            kept = 0
            yield choose(run.seq, logits[first])
            while kept < len(run.guess) and self._has_taken(run, run.guess[kept]):
                run.seq.num_computed += 1
                kept += 1
                yield choose(run.seq, logits[first + kept])
            first += 1 + len(run.guess)
            num_guessed, num_kept = num_guessed + len(run.guess), num_kept + kept
            if run.guess and run.guesser is not None:
                run.guesser.learn(len(run.guess), kept)
                if run.seq.seq_id in self._runs:
                    self._trim(run.handle, run.seq.num_computed)
        self._num_guessed, self._num_kept = self._num_guessed + num_guessed, self._num_kept + num_kept
        if seconds is not None:
            self._count_gain(runs, num_guessed, num_kept, seconds)

    def _count_gain(self, runs: list[_Run], num_guessed: int, num_kept: int, seconds: float) -> None:
        """A guess tells about its guesser; a pass without one tells both what plain decoding takes."""
        by_draft = num_guessed > 0 and self._draft is not None and runs[0].guesser is self._draft
        if self._gain is not None and not by_draft:
            self._gain.saw(len(runs), num_guessed, num_kept, seconds)
        if self._draft is not None and (by_draft or not num_guessed):
            self._draft.gain.saw(len(runs), num_guessed, num_kept, seconds, self._draft.take_spent_s() if by_draft else 0.0)

    def _has_taken(self, run: _Run, token_id: int) -> bool:
        """Is this token the only one that the sequence has beyond its KV? Then the guess's logits are what a plain pass would give."""
        seq = run.seq
        return seq.seq_id in self._runs and seq.num_uncomputed == 1 and seq.token_ids[-1] == token_id

    # -- kept prefixes -----------------------------------------------------------------------------------------------

    def _keep(self, handle: int, tokens: Tokens, scope: CacheScope) -> None:
        """Turn a stopped sequence's KV into a prefix; whatever it makes superfluous goes."""
        self._trim(handle, len(tokens))
        self._tree.remove(handle)
        if self._tree.match(tokens, scope).length == len(tokens):
            self._free(handle)
            return
        for shorter in self._tree.prefixes(tokens, scope):
            if shorter in self._entries and len(self._entries[shorter].tokens) > scope.public_len:
                self._evict(shorter)
        self._tree.insert(handle, tokens, scope, ready=len(tokens))
        self._entries[handle] = _Entry(tokens, scope)
        self._keep_public(handle, tokens, scope)

    def _keep_public(self, handle: int, tokens: Tokens, scope: CacheScope) -> None:
        """The public part outlives the conversations that share it: it gets an entry of its own, which costs no cells."""
        public = tokens[: scope.public_len]
        if not public or len(public) == len(tokens) or len(public) < scope.public_len:
            return
        if any(self._entries[h].tokens == public for h in self._tree.prefixes(public, scope) if h in self._entries):
            return
        own = self._take_handle(keep=handle)
        self._model.share(handle, own, len(public))
        self._cells.share(handle, own, len(public))
        self._tree.insert(own, public, scope, ready=len(public))
        self._entries[own] = _Entry(public, scope)

    def _restore(self, tokens: Tokens, scope: CacheScope) -> bool:
        """Bring the public part back from disk, into free room."""
        public = tokens[: scope.public_len]
        if self._saved is None or not MIN_TOKENS <= scope.public_len == len(public) <= self._cells.num_free or not self._handles:
            return False
        handle = self._handles.pop()
        if not self._saved.load(handle, public, scope):
            self._handles.append(handle)
            return False
        self._cells.grow(handle, len(public))
        self._tree.insert(handle, public, scope, ready=len(public))
        self._entries[handle] = _Entry(public, scope)
        return True

    def _touch(self, tokens: Tokens, scope: CacheScope, handle: int) -> None:
        """Most recently used last; a shared prefix counts as used after the conversation that builds on it."""
        for used in [handle, *self._tree.prefixes(tokens, scope)]:
            if used in self._entries:
                self._entries.move_to_end(used)

    def _take_handle(self, keep: int | None) -> int:
        while not self._handles:
            self._evict(next(h for h in self._entries if h != keep))
        return self._handles.pop()

    def _make_room(self, count: int) -> None:
        while self._cells.num_free < count and self._entries:
            self._evict(next(iter(self._entries)))
        if self._cells.num_free < count:
            raise OutOfRoom

    def _evict(self, handle: int) -> None:
        del self._entries[handle]
        self._num_evicted += 1
        self._tree.remove(handle)
        self._trim(handle, 0)
        self._handles.append(handle)

    def _free(self, handle: int) -> None:
        self._trim(handle, 0)
        self._handles.append(handle)

    def _trim(self, handle: int, length: int) -> None:
        self._model.trim(handle, length)
        self._cells.trim(handle, length)
