"""The engine process: one thread that reads messages, steps the scheduler and writes what happened."""

import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

import msgspec

from backends.constraint import Grammars
from backends.protocol import Backend, EngineOptions, ModelLoadError
from backends.registry import make_backend, make_tokenizer
from backends.scheduler import Scheduler
from backends.sequence import Priority, SamplingParams, Sequence
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
    ToWeb,
    Unframer,
    encode,
    to_engine_decoder,
)

BEAT_EVERY_S = 0.5
NAP_MS = 5
RECEIVE_BYTES = 1 << 20
LOAD_FAILED_EXIT = 3


class Worker:
    """Owns the socket and the scheduler; `run` returns when the web side closes the socket or SIGTERM asks."""

    def __init__(self, sock: socket.socket, backend: Backend, grammars: Grammars) -> None:
        self._sock = sock
        self._backend = backend
        self._grammars = grammars
        self._scheduler = Scheduler(backend)
        self._unframer = Unframer()
        self._poller = select.poll()
        self._poller.register(sock, select.POLLIN)
        self._inbox: list[ToEngine] = []
        self._is_open = True
        self._last_beat = 0.0
        backend.watch(self._must_break_off)

    def close(self) -> None:
        """Leave after the current step."""
        self._is_open = False

    def run(self) -> None:
        """Say that the model is loaded, then serve."""
        self._send(Loaded(self._backend.spec))
        while self._is_open:
            self._receive(self._wait_ms())
            if not self._is_open:
                return
            events = self._scheduler.step()
            if events:
                self._send(Tokens(events))
            self._beat()

    def prove(self) -> None:
        """Decode a token. Raises ModelLoadError when that cannot be done."""
        token = self._backend.spec.eos_token_ids[0] if self._backend.spec.eos_token_ids else 0
        self._scheduler.submit(Sequence(0, [token], 1, SamplingParams(max_tokens=1)))
        events: list[TokenEvent] = []
        while self._scheduler.has_work:
            events += self._scheduler.step()
        if not any(event.token_id >= 0 for event in events):
            raise ModelLoadError("the model was loaded, but there is no memory left to decode with it")

    def _wait_ms(self) -> int:
        """How long there is nothing to do but listen. What neither runs nor starts waits for its grammar."""
        if not self._scheduler.has_work:
            return int(BEAT_EVERY_S * 1000)
        return 0 if self._scheduler.running else NAP_MS

    def _receive(self, wait_ms: int) -> None:
        """Obey what has come; with nothing to do, wait for something."""
        self._read(0 if self._inbox else wait_ms)
        inbox, self._inbox = self._inbox, []
        for message in inbox:
            self._obey(message)

    def _read(self, wait_ms: int) -> None:
        while self._is_open and self._poller.poll(wait_ms):
            data = self._sock.recv(RECEIVE_BYTES)
            if not data:
                self.close()
                return
            self._inbox += [to_engine_decoder.decode(payload) for payload in self._unframer.feed(data)]
            wait_ms = 0

    def _must_break_off(self) -> bool:
        """Asked in the middle of a forward pass: somebody in it has gone, or the web side has."""
        self._read(0)
        self._beat()
        gone = {message.seq_id for message in self._inbox if isinstance(message, Abort)}
        return not self._is_open or any(seq.seq_id in gone for seq in self._scheduler.running)

    def _obey(self, message: ToEngine) -> None:
        match message:
            case Submit():
                tokens = message.prompt_token_ids
                seq = Sequence(message.seq_id, list(tokens), len(tokens), message.sampling, message.scope, message.thinking)
                seq.priority, seq.reuse_output = message.priority, message.reuse_output
                seq.constraint = self._grammars.constrain(message.sampling.grammar) if message.sampling.grammar else None
                self._scheduler.submit(seq)
            case Abort():
                self._scheduler.abort(message.seq_id)
            case CloseThought():
                self._scheduler.close_thought(message.seq_id)

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._last_beat >= BEAT_EVERY_S:
            self._last_beat = now
            self._send(Beat(self._stats()))

    def _stats(self) -> Stats:
        scheduler, totals = self._scheduler, self._scheduler.totals
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Stats(
            num_waiting=len(scheduler.waiting),
            num_running=sum(seq.priority is Priority.ACTIVE for seq in scheduler.running),
            num_idle=len(scheduler.idle) + sum(seq.priority is Priority.IDLE for seq in scheduler.running),
            cache=self._backend.cache_stats(),
            prompt_tokens_total=totals.prompt_tokens,
            cached_tokens_total=totals.cached_tokens,
            completion_tokens_total=totals.completion_tokens,
            preemptions_total=totals.preemptions,
            forced_closes_total=totals.forced_closes,
            loop_closes_total=totals.loop_closes,
            steps_total=totals.steps,
            peak_memory_bytes=peak if sys.platform == "darwin" else peak * 1024,
        )

    def _send(self, message: ToWeb) -> None:
        try:
            self._sock.sendall(encode(message))
        except (BrokenPipeError, ConnectionResetError):
            self.close()


def main(arguments: list[str], factory: Callable[[EngineOptions], Backend] = make_backend) -> int:
    """`worker FD OPTIONS_JSON`: serve the model over the inherited socket FD. Returns the exit status."""
    sock = socket.socket(fileno=int(arguments[0]))
    options = msgspec.json.decode(arguments[1], type=EngineOptions)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        backend = factory(options)
        worker = Worker(sock, backend, Grammars(lambda: make_tokenizer(options.path)))
        worker.prove()
    except ModelLoadError as error:
        sock.sendall(encode(LoadFailed(str(error))))
        return LOAD_FAILED_EXIT
    signal.signal(signal.SIGTERM, lambda *_: worker.close())
    try:
        worker.run()
    finally:
        backend.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
