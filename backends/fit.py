"""Does a model fit this machine: weights plus KV against what the machine can spare. Pure functions of numbers."""

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
# Below this no support conversation with a thought in it can be held.
MIN_TOKENS = 2048
# This share of what the GPU may use stays free for what comes and goes during a forward pass: estimates without it ended in crashes.
SLACK = 0.15
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Machine:
    """`memory_bytes` of memory; `is_mac` where an Apple chip shares it with its GPU; `limit_bytes` goes before the default budget."""

    memory_bytes: int
    is_mac: bool = False
    limit_bytes: int = 0

    @property
    def budget_bytes(self) -> int:
        """What weights and KV may take: macOS lets a GPU use about 2/3 of the memory up to 36 GiB, 3/4 above; elsewhere 3/4, too."""
        share = 2 / 3 if self.is_mac and self.memory_bytes <= 36 * GIB else 3 / 4
        return self.limit_bytes or int(self.memory_bytes * share * (1 - SLACK))


@dataclass(frozen=True, slots=True)
class Fit:
    """A model on a machine. `kv_bytes` is per token; 0 when it is not known before loading."""

    weight_bytes: int
    kv_bytes: int
    budget_bytes: int

    @property
    def num_tokens(self) -> int:
        """Tokens of KV for which there is room beside the weights."""
        return max(0, self.budget_bytes - self.weight_bytes) // self.kv_bytes if self.kv_bytes else 0

    def holds(self, num_tokens: int = MIN_TOKENS) -> bool:
        """Weights and so many tokens of KV fit."""
        return self.weight_bytes + num_tokens * self.kv_bytes <= self.budget_bytes

    def __str__(self) -> str:
        kv = f" + {self.kv_bytes / 1024:.0f} KiB a token" if self.kv_bytes else ""
        return f"{self.weight_bytes / 1e9:.1f} GB of weights{kv}, {self.budget_bytes / 1e9:.1f} GB to spare"


def this_machine(limit_gib: float = 0.0) -> Machine:
    """The machine this runs on, or as much of it as its control group allows."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if CGROUP_LIMIT.is_file() and (limit := CGROUP_LIMIT.read_text().strip()).isdigit():
        memory = min(memory, int(limit))
    return Machine(memory, sys.platform == "darwin" and platform.machine() == "arm64", int(limit_gib * GIB))
