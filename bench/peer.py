"""llama.cpp's own server and benches, built from the very sources that our engine was built from."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.client import BenchError
from bench.rows import Row, medians
from bench.servers import Settings

CACHE = Path(".cache/peer")
TARGETS = ("llama-server", "llama-bench", "llama-batched-bench")
SWITCHED_OFF = (
    "LLAMA_BUILD_TESTS",
    "LLAMA_BUILD_EXAMPLES",
    "LLAMA_BUILD_APP",
    "LLAMA_BUILD_UI",
    "LLAMA_USE_PREBUILT_UI",
    "LLAMA_OPENSSL",
)
# Sapphire Rapids tiles crash in ggml's AMX kernels when gcc 12 compiles them; our own engine is built with the same flags.
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
_PROGRESS = re.compile(r"^\[\s*(\d+%|\d+/\d+)\]")


def engine_version() -> str:
    """The version of the installed llama-cpp-python; its source archive carries the matching llama.cpp."""
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError as error:
        raise BenchError("llama-cpp-python is not installed: run `make setup` first") from error


def build(show: Callable[[str], None], cache: Path = CACHE, jobs: int | None = None) -> Path:
    """The folder with the three peer programs, built on the first call (minutes) and found again afterwards."""
    home = (cache / f"llama.cpp-{engine_version()}").resolve()
    programs = home / "build" / "bin"
    if all((programs / name).exists() for name in TARGETS):
        return programs
    source = home / "source"
    if not (source / "CMakeLists.txt").exists():
        _unpack(_fetch(cache, show), source, show)
    off = [f"-D{name}=OFF" for name in SWITCHED_OFF]
    flags = [f"-DCMAKE_C_FLAGS={NO_AMX}", f"-DCMAKE_CXX_FLAGS={NO_AMX}"] if platform.machine() in ("x86_64", "AMD64") else []
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    watch(["cmake", *ninja, "-S", str(source), "-B", str(home / "build"), "-DCMAKE_BUILD_TYPE=Release", *off, *flags], show)
    watch(["cmake", "--build", str(home / "build"), "-j", str(jobs or os.cpu_count() or 1), "--target", *TARGETS], show)
    return programs


def _fetch(cache: Path, show: Callable[[str], None]) -> Path:
    version = engine_version()
    archive = cache / f"llama_cpp_python-{version}.tar.gz"
    if not archive.exists():
        show(f"downloading the sources of llama-cpp-python {version}")
        name = "llama-cpp-python"
        pip = [sys.executable, "-m", "pip"] if _has_pip() else ["uvx", "pip"]
        watch([*pip, "download", "--no-deps", "--no-binary", name, "--dest", str(cache), f"{name}=={version}"], show)
    return archive


def _has_pip() -> bool:
    return subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


def _unpack(archive: Path, source: Path, show: Callable[[str], None]) -> None:
    show(f"unpacking {archive.name}")
    partial = source.with_name("unpacking")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(partial, filter="data")
    (partial / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp").rename(source)
    shutil.rmtree(partial)


def watch(command: Sequence[str], show: Callable[[str], None]) -> None:
    """Run `command`, showing its progress marks. Raises BenchError with the last lines when it fails."""
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if mark := _PROGRESS.match(line):
                show(f"building llama.cpp {engine_version()}: {mark[1]} (once, some minutes)")
    if process.returncode:
        raise BenchError(f"`{' '.join(command)}` failed:\n" + "\n".join(lines[-15:]))


def run_llama_bench(programs: Path, settings: Settings, num_prompt: int, num_tokens: int, repeats: int) -> list[Row]:
    """What the engine does without a server: prefill of `num_prompt` tokens and one stream of `num_tokens`."""
    sizes = ["-p", str(num_prompt), "-n", str(num_tokens), "-r", str(repeats), "-t", str(settings.threads)]
    found = json.loads(_output([str(programs / "llama-bench"), "-m", str(settings.model), *sizes, "-fa", "auto", "-o", "json"]))
    rows = []
    for entry in found:
        row = Row("llama-bench", "decode" if entry["n_gen"] else "prefill", repeats=repeats)
        rate = entry["avg_ts"]
        rows.append(replace(row, decode_tokens_per_s=rate) if entry["n_gen"] else replace(row, prefill_tokens_per_s=rate))
    return rows


def run_batched_bench(programs: Path, settings: Settings, streams: Sequence[int], num_tokens: int, repeats: int) -> list[Row]:
    """What the engine does on several streams without a server: decode only, each stream with a cache of its own."""
    levels = ",".join(str(number) for number in streams)
    load = ["-npp", "32", "-ntg", str(num_tokens), "-npl", levels, "-c", str(settings.num_kv_tokens)]
    model = ["-m", str(settings.model), "-t", str(settings.threads), "-fa", "auto"]
    rows = []
    for _ in range(repeats):
        lines = _output([str(programs / "llama-batched-bench"), *model, *load, "--output-format", "jsonl"]).splitlines()
        entries = [json.loads(line) for line in lines if line.startswith("{")]
        rows += [Row("llama-batched-bench", "decode", entry["pl"], decode_tokens_per_s=entry["speed_tg"]) for entry in entries]
    return medians(rows)


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"`{' '.join(command)}` failed:\n{done.stderr[-1500:]}")
    return done.stdout
