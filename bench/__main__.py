"""The command line of the bench: which servers, which workloads, which model."""

import argparse
import asyncio
import json
import os
import shlex
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from bench import workloads
from bench.client import BenchError, Body
from bench.model import SHAPES, make_model
from bench.peer import build, run_batched_bench, run_llama_bench
from bench.prompts import Prompts
from bench.report import COST, PLAIN, SPEED, ratios_table, rows_table
from bench.rows import Row, medians, write_json_lines
from bench.servers import Settings, Target, attach, serve_kefu, serve_llama
from bench.workloads import Load

WORKLOADS = ("decode", "prefill", "burst", "turns", "places", "guess", "desk")
console = Console(width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure on each server."""

    workloads: tuple[str, ...]
    streams: tuple[int, ...]
    settings: Settings
    tokens: int
    repeat: int
    pause_s: float
    seed: str

    def steps(self) -> Iterator[tuple[str, Callable[[Load], Awaitable[list[Row]]]]]:
        """The named runs in order; each is called once per repeat."""
        for name in self.workloads:
            if name == "decode":
                for streams in self.streams:
                    yield f"decode {streams}", partial(workloads.decode, streams=streams)
            else:
                yield name, getattr(workloads, name)


async def measure(plan: Plan, target: Target) -> list[Row]:
    """The median rows of every workload against one server. Nobody is measured on the first, cold request."""
    rows: list[Row] = []
    warm_up = Load(target, Prompts(f"{plan.seed} warm up"))
    (await warm_up.steady([workloads.user("Good morning.")], 8)).reply()
    for name, run in plan.steps():
        for number in range(1, plan.repeat + 1):
            load = Load(target, Prompts(f"{plan.seed} {name} {number}"), plan.settings.places, plan.tokens, plan.pause_s)
            with console.status(f"{target.name}: {name}, {number} of {plan.repeat}"):
                rows += await run(load)
    return medians(rows)


def measure_plain(plan: Plan, body: Body) -> list[Row]:
    """The workload that guessing ahead is for, without it."""
    with serve_kefu(replace(plan.settings, guesses=False), body) as target:
        return asyncio.run(measure(replace(plan, workloads=("guess",)), replace(target, name=PLAIN)))


def measure_peer(plan: Plan, ours: Sequence[Row], programs: Path) -> list[Row]:
    """The same workloads on llama-server, and its engine without a server, one after the other."""
    with serve_llama(programs, plan.settings, {}) as target:
        rows = asyncio.run(measure(replace(plan, workloads=tuple(name for name in plan.workloads if name != "desk")), target))
    if {"decode", "prefill"} & set(plan.workloads):
        prompts = [row.prompt_tokens for row in (*ours, *rows) if row.workload == "prefill" and row.prompt_tokens]
        with console.status("llama-bench"):
            rows += run_llama_bench(programs, plan.settings, prompts[0] if prompts else 512, plan.tokens, plan.repeat)
    if "decode" in plan.workloads:
        with console.status("llama-batched-bench"):
            rows += run_batched_bench(programs, plan.settings, plan.streams, plan.tokens, plan.repeat)
    return rows


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Defaults suit a quiet two-core machine and the 0.5B shape."""
    parser = argparse.ArgumentParser("make bench", description="Load over the OpenAI API, measured from outside.")
    add = parser.add_argument
    add("--model", type=Path, metavar="GGUF", help="the model file that every server is started on")
    add("--make-model", choices=sorted(SHAPES), help="write a random model of this shape to --model first, if it is not there")
    add("--vocab", type=Path, metavar="GGUF", help="tokenizer for --make-model (default: kefu-mini's, filled up)")
    add("--url", help="measure the server that runs here instead of starting kefu")
    add("--name", default="kefu", help="what to call it; llama-server also makes its requests that server's (default %(default)s)")
    add("--pid", type=int, help="process id of that server, for its memory")
    add("--peer", choices=["llama-server"], help="build and measure llama.cpp's own server and benches too")
    add("--peer-args", type=shlex.split, default=[], metavar="ARGS", help="further arguments for llama-server, such as '--flash-attn off'")
    add("--only-peer", action="store_true", help="do not measure kefu")
    add("--workloads", default=",".join(WORKLOADS), help="some of %(default)s")
    add("--streams", default="1,4,8,16", help="concurrent streams of decode (default %(default)s)")
    add("--tokens", type=int, default=128, help="tokens of each decode stream (default %(default)s)")
    add("--places", type=int, default=8, help="answers computed at the same time (default %(default)s)")
    add("--kv-tokens", type=int, default=16384, help="KV room in tokens (default %(default)s)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="engine threads (default %(default)s)")
    add("--repeat", type=int, default=3, help="runs of each workload; medians are shown (default %(default)s)")
    add("--pause", type=float, default=3.0, help="seconds a customer reads between turns (default %(default)s)")
    add("--seed", help="other text; a server that runs already gets new text on each call")
    add("--body", type=json.loads, default={}, metavar="JSON", help="fields for each request to kefu: reasoning_effort and the like")
    add("--json", type=Path, metavar="FILE", help="write the rows as JSON lines")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(listed(options.workloads)) - set(WORKLOADS)):
        parser.error(f"there is no workload {unknown[0]}; there are {', '.join(WORKLOADS)}")
    if not options.model and (not options.url or options.peer or options.make_model):
        parser.error("name the model file with --model")
    return options


def plan_of(options: argparse.Namespace) -> Plan:
    seed = options.seed or (f"{time.time():.0f}" if options.url else "0")
    settings = Settings(options.model, options.places, options.kv_tokens, options.threads, tuple(options.peer_args))
    streams = tuple(int(part) for part in listed(options.streams))
    return Plan(listed(options.workloads), streams, settings, options.tokens, options.repeat, options.pause, seed)


def listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def run(options: argparse.Namespace) -> None:
    """Everything the command line asks for; servers one after the other, never together."""
    plan = plan_of(options)
    if options.make_model and not options.model.exists():
        with console.status(f"writing a random {options.make_model} model to {options.model}"):
            make_model(SHAPES[options.make_model], options.model, options.vocab)
    if options.peer:
        with console.status("building the peer") as status:
            programs = build(status.update)
    rows: list[Row] = []
    if not options.only_peer:
        server = serve_kefu(plan.settings, options.body) if options.url is None else nullcontext(_running(options))
        with server as target:
            rows = asyncio.run(measure(plan, target))
        if "guess" in plan.workloads and options.url is None:
            rows += measure_plain(plan, options.body)
    if options.peer:
        rows += measure_peer(plan, rows, programs)
    console.print(rows_table(rows, SPEED), rows_table(rows, COST))
    if (options.peer or "guess" in plan.workloads) and not options.only_peer:
        console.print(ratios_table(rows, options.name))
    if options.json:
        write_json_lines(options.json, rows)


def _running(options: argparse.Namespace) -> Target:
    return attach(options.name, options.url, options.pid, options.body, options.model)


def main() -> None:
    try:
        run(parse())
    except BenchError as error:
        sys.exit(f"bench: {error}")


if __name__ == "__main__":
    main()
