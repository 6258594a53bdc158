"""What could go wrong on this machine, one finding a line: what is, and what to do about it."""

import platform
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backends.catalog import find
from backends.fit import GIB, Fit, Machine
from backends.protocol import EngineError, EngineOptions
from backends.sequence import SamplingParams
from backends.supervisor import Supervisor
from server.models import OFFERED, ModelUnavailable, choose, default_format
from server.ports import PortTaken, bind
from server.service import run
from server.settings import Settings

Topic = Literal["memory", "disk", "port", "software", "power", "clock", "engine"]
Level = Literal["ok", "warn", "bad"]

# The exit status of a bad finding, by its topic; the first one decides. Warnings alone are 3.
EXIT_CODES: dict[Topic, int] = {"memory": 10, "disk": 11, "port": 12, "software": 13, "power": 14, "clock": 15, "engine": 16}
EXIT_WARNINGS = 3
# Two connections that write and checkpoint at the same instant can corrupt a database in 3.7.0 to 3.51.2 (SQLite's WAL-reset bug).
SAFE_SQLITE = (3, 51, 3)
LOW_DISK_BYTES, NO_DISK_BYTES, MUCH_SWAP_BYTES = 2e9, 5e8, 1e9
PROMPT_TOKENS, ANSWER_TOKENS = 600, 16
SHORT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `do` is the advice, empty when all is well."""

    topic: Topic
    level: Level
    said: str
    do: str = ""


def exit_status(findings: list[Finding]) -> int:
    """0 when all is well; see EXIT_CODES."""
    bad = [EXIT_CODES[finding.topic] for finding in findings if finding.level == "bad"]
    return bad[0] if bad else EXIT_WARNINGS if any(finding.level == "warn" for finding in findings) else 0


def examine(settings: Settings, machine: Machine) -> Iterator[Finding]:
    """Everything but the engine. Raises UnknownModel or BrokenManifest for a model that cannot be looked up."""
    chip = _ask("sysctl", "-n", "machdep.cpu.brand_string") if machine.is_mac else platform.processor() or platform.machine()
    yield Finding("memory", "ok", f"{chip}, {machine.memory_bytes / GIB:.0f} GiB, {machine.budget_bytes / 1e9:.1f} GB of it for a model")
    yield _model(settings, machine)
    swap = _swap_bytes(machine)
    yield _judge("memory", swap <= MUCH_SWAP_BYTES, f"{swap / 1e9:.1f} GB of swap in use", "close programs: a swapped model crawls")
    if machine.is_mac:
        low_power = re.search(r"lowpowermode\s+1", _ask("pmset", "-g"))
        advice = "answers take 1.4 to 3.8 times as long; switch it off in System Settings > Battery"
        yield _judge("power", not low_power, f"low power mode is {'on' if low_power else 'off'}", advice)
        wired = _ask("sysctl", "-n", "iogpu.wired_limit_mb") or "0"
        yield _judge("memory", wired == "0", f"iogpu.wired_limit_mb is {wired}", "set it back to 0: raised, it starves the system")
    yield from _disks(settings)
    yield _port(settings)
    advice = "Python with SQLite 3.51.3 is safe; until then let nothing but kefu open its database"
    yield _judge("software", sqlite3.sqlite_version_info >= SAFE_SQLITE, f"SQLite {sqlite3.sqlite_version}", advice)
    written = max(path.stat().st_mtime for path in (*settings.data_dir.glob("*"), Path(__file__)))
    said = f"the clock says {time.strftime('%Y-%m-%d %H:%M %Z')}"
    yield _judge("clock", written < time.time() + 60, said, "it is behind files that were written here; set it", "bad")


def _judge(topic: Topic, is_well: object, said: str, do: str, level: Level = "warn") -> Finding:
    return Finding(topic, "ok", said) if is_well else Finding(topic, level, said, do)


def _ask(*command: str) -> str:
    return run(command).stdout.strip()


def _model(settings: Settings, machine: Machine) -> Finding:
    """The model in the settings, or else the one that kefu is made for: the formula with its numbers, and what follows."""
    try:
        chosen = choose(settings, machine)
    except ModelUnavailable as error:
        return Finding("memory", "bad", str(error))
    entry = find(chosen.name or OFFERED)
    fit = chosen.fit or Fit(entry.weight_bytes(default_format(machine)), entry.kv_bytes_per_token(), machine.budget_bytes)
    name = chosen.name or settings.engine.model or OFFERED
    if not fit.kv_bytes or not fit.holds(SHORT_TOKENS):
        return Finding("memory", "ok", f"{name} {'fits' if fit.holds() else 'would not fit'}: {fit}")
    longest = min(chosen.engine.context_length or entry.context_length, fit.num_tokens)
    talks = f"{fit.num_tokens // longest} of {longest:,} or {fit.num_tokens // SHORT_TOKENS} of {SHORT_TOKENS:,}"
    return Finding("memory", "ok", f"{name} fits: {fit}, so {fit.num_tokens:,} tokens: conversations at once, {talks}")


def _swap_bytes(machine: Machine) -> float:
    if machine.is_mac:
        found = re.search(r"used = ([\d.]+)M", _ask("sysctl", "-n", "vm.swapusage"))
        return float(found[1]) * 1e6 if found else 0.0
    kib = dict(re.findall(r"^(Swap\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    return (int(kib["SwapTotal"]) - int(kib["SwapFree"])) * 1024.0


def _disks(settings: Settings) -> Iterator[Finding]:
    for wanted in (settings.data_dir, settings.models.dir):
        place = next(path for path in (wanted.resolve(), *wanted.resolve().parents) if path.exists())
        free = shutil.disk_usage(place).free
        level: Level = "bad" if free < NO_DISK_BYTES else "warn"
        yield _judge("disk", free >= LOW_DISK_BYTES, f"{free / 1e9:.1f} GB free for {wanted}", "make room: nothing fits a full disk", level)


def _port(settings: Settings) -> Finding:
    try:
        for sock in bind(settings.server.host, settings.server.port):
            sock.close()
        return Finding("port", "ok", f"port {settings.server.port} on {settings.server.host} is free")
    except (PortTaken, OSError) as error:
        return Finding("port", "bad", str(error), "stop that, unless it is kefu itself, or set server.port")


async def decode(options: EngineOptions) -> Finding:
    """Start the engine as `serve` does and have it read 600 tokens: some builds die in their first large batch, not in a short one."""
    supervisor, began = Supervisor(options), time.monotonic()
    prompt, first = [index % 256 + 1 for index in range(PROMPT_TOKENS)], 0.0
    await supervisor.start()
    try:
        await supervisor.loaded()
        loaded = time.monotonic()
        async with supervisor.client.submit(prompt, SamplingParams(max_tokens=ANSWER_TOKENS)) as stream:
            async for events in stream:
                first = first or (time.monotonic() if events[-1].token_id >= 0 else 0.0)
    except EngineError as error:
        advice = "try another model; if none works, build the engine again (on x86-64 without AMX, as the Makefile does)"
        return Finding("engine", "bad", f"{options.name} could not read {PROMPT_TOKENS} tokens: {error}", advice)
    finally:
        await supervisor.stop()
    speed = PROMPT_TOKENS / max(first - loaded, 1e-3)
    return Finding(
        "engine", "ok", f"{options.name} loads in {loaded - began:.1f} s and reads {PROMPT_TOKENS} tokens at {speed:,.0f} a second"
    )
