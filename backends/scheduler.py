"""The scheduler: who runs, who waits, when a thought is closed and when an answer ends. Pure: no clock, no thread, no text."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from backends.protocol import AdapterRefused, Admission, Backend, OutOfRoom, StepOutput
from backends.repetition import is_looping
from backends.sequence import FinishReason, Priority, Sequence, SequenceStatus, Thinking
from backends.wire import TokenEvent

MAX_IDLE = 64


@dataclass(slots=True)
class Totals:
    """Counters since the engine started."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    preemptions: int = 0
    forced_closes: int = 0
    loop_closes: int = 0
    steps: int = 0


class Scheduler:
    """Owns every sequence from submit to finish. `step` admits, runs the backend once and returns what happened."""

    def __init__(self, backend: Backend) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.idle: deque[Sequence] = deque()
        self.totals = Totals()
        self._backend = backend
        self._events: list[TokenEvent] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self.idle or self._events)

    def submit(self, seq: Sequence) -> None:
        """Queue a sequence. Warm-ups beyond MAX_IDLE push out the oldest warm-up."""
        if seq.priority is Priority.IDLE:
            self.idle.append(seq)
            if len(self.idle) > MAX_IDLE:
                self._finish(self.idle.popleft(), FinishReason.ABORT)
        else:
            self.waiting.append(seq)

    def abort(self, seq_id: int) -> None:
        """End a sequence in any state. Unknown ids are ignored."""
        seq = self._find(seq_id)
        if seq is not None:
            self._finish(seq, FinishReason.ABORT)

    def close_thought(self, seq_id: int) -> None:
        """Answer now: end the open thought of this sequence."""
        seq = self._find(seq_id)
        if seq is not None and seq.in_thought:
            self._force_close(seq)

    def step(self) -> list[TokenEvent]:
        """Admit whoever may start, compute once, and return the events since the last step."""
        self._admit()
        if self.running:
            self.totals.steps += 1
            for output in self._compute():
                self._accept(output)
            for seq in [s for s in self.running if s.sampling.max_tokens == 0 and s.num_uncomputed == 0]:
                self._finish(seq, FinishReason.LENGTH)
        events, self._events = self._events, []
        return events

    def _find(self, seq_id: int) -> Sequence | None:
        return next((s for queue in (self.running, self.waiting, self.idle) for s in queue if s.seq_id == seq_id), None)

    def _admit(self) -> None:
        if self.waiting:
            self._pause_idle()
        for seq in list(self.waiting):
            if seq.constraint is not None and not seq.constraint.is_ready:
                continue
            match self._backend.admission(seq):
                case Admission.YES:
                    self.waiting.remove(seq)
                    self._start(seq)
                case Admission.REFUSED:
                    self._finish(seq, FinishReason.NO_MEMORY)
                case Admission.FULL:
                    break
                case Admission.WAIT:
                    continue
        if not self.running and not self.waiting and self.idle:
            seq = self.idle.popleft()
            if self._backend.admission(seq) is Admission.YES:
                self._start(seq)

    def _pause_idle(self) -> None:
        """Real work goes first: a warm-up keeps what it has computed as a prefix and waits again."""
        for seq in [s for s in self.running if s.priority is Priority.IDLE]:
            self._release(seq)
            self.idle.appendleft(seq)

    def _start(self, seq: Sequence) -> None:
        try:
            cached = self._backend.start(seq)
        except AdapterRefused as error:
            seq.status = SequenceStatus.FINISHED
            self._events.append(TokenEvent(seq.seq_id, finish_reason=FinishReason.ABORT, refusal=str(error)))
            return
        seq.status = SequenceStatus.RUNNING
        self.running.append(seq)
        if seq.num_preempted == 0 and seq.priority is Priority.ACTIVE:
            seq.num_cached = cached
            self.totals.prompt_tokens += seq.num_prompt_tokens
            self.totals.cached_tokens += cached
            self._events.append(TokenEvent(seq.seq_id, num_cached=cached))

    def _compute(self) -> Iterable[StepOutput]:
        while self.running:
            try:
                return self._backend.step()
            except OutOfRoom:
                self._make_room()
        return []

    def _make_room(self) -> None:
        """The newest sequence gives way and resumes later; one that fills the whole cache alone has reached its length."""
        seq = self.running[-1]
        if len(self.running) == 1:
            self._finish(seq, FinishReason.LENGTH)
            return
        self._release(seq)
        seq.num_preempted += 1
        self.totals.preemptions += 1
        self.waiting.appendleft(seq)

    def _release(self, seq: Sequence) -> None:
        seq.status = SequenceStatus.WAITING
        self._backend.stop(seq)
        self.running.remove(seq)
        seq.num_computed = 0

    def _accept(self, output: StepOutput) -> None:
        seq, token_id = output.seq, output.token_id
        is_eos = token_id in self._backend.spec.eos_token_ids
        if is_eos and seq.in_thought:
            self._force_close(seq)
            return
        seq.token_ids.append(token_id)
        self.totals.completion_tokens += 1
        reason = self._end(seq) if is_eos else self._limit(seq)
        self._events.append(TokenEvent(seq.seq_id, token_id, output.logprob, output.top_logprobs, reason, vector=output.vector))
        if reason is not None:
            self._finish(seq, reason, announce=False)
            return
        self._watch_thought(seq, token_id)
        self._watch_loop(seq)

    def _end(self, seq: Sequence) -> FinishReason:
        return FinishReason.LENGTH if seq.constraint is not None and seq.constraint.is_broken else FinishReason.STOP

    def _limit(self, seq: Sequence) -> FinishReason | None:
        full = seq.num_completion_tokens >= seq.sampling.max_tokens or len(seq.token_ids) >= self._backend.spec.context_length
        return FinishReason.LENGTH if full else None

    def _watch_thought(self, seq: Sequence, token_id: int) -> None:
        thinking = seq.thinking
        if thinking is None:
            return
        if seq.in_thought:
            if token_id == thinking.close_id:
                self._end_thought(seq)
                return
            seq.num_thought += 1
            budget = self._budget(thinking)
            if budget is not None and seq.num_thought >= budget:
                self._force_close(seq)
        elif token_id == thinking.open_id and not seq.thought_closed:
            seq.in_thought = True

    def _budget(self, thinking: Thinking) -> int | None:
        """Thought tokens allowed now: half of them when as many wait as run, and so on down to the least."""
        if thinking.budget is None or thinking.least is None:
            return thinking.budget
        num_places = self._backend.spec.max_sequences
        return max(thinking.least, thinking.budget * num_places // (num_places + len(self.waiting)))

    def _end_thought(self, seq: Sequence) -> None:
        seq.in_thought, seq.thought_closed = False, True
        seq.channel_start = len(seq.token_ids)

    def _watch_loop(self, seq: Sequence) -> None:
        # An answer may repeat what the thought drafted, so each is watched by itself.
        if not is_looping(seq.token_ids, seq.num_channel_tokens):
            return
        self.totals.loop_closes += 1
        if seq.in_thought:
            self._force_close(seq)
        else:
            self._finish(seq, FinishReason.REPETITION)

    def _force_close(self, seq: Sequence) -> None:
        """Insert the closing tokens into the sequence; the next step computes them like any others."""
        assert seq.thinking is not None
        self.totals.forced_closes += 1
        self._end_thought(seq)
        for token_id in seq.thinking.close_ids:
            seq.token_ids.append(token_id)
            reason = self._limit(seq)
            self._events.append(TokenEvent(seq.seq_id, token_id, finish_reason=reason))
            if reason is not None:
                self._finish(seq, reason, announce=False)
                return
        seq.channel_start = len(seq.token_ids)

    def _finish(self, seq: Sequence, reason: FinishReason, *, announce: bool = True) -> None:
        was_running = seq.status is SequenceStatus.RUNNING
        seq.status = SequenceStatus.FINISHED
        if was_running:
            self._backend.stop(seq)
        for queue in (self.running, self.waiting, self.idle):
            if seq in queue:
                queue.remove(seq)
        if announce and seq.priority is Priority.ACTIVE:
            self._events.append(TokenEvent(seq.seq_id, finish_reason=reason))
