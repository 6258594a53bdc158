"""One training run as a job for a child process, and how it goes while it runs."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

Method = Literal["dpo", "kto", "orpo", "grpo", "sft"]
TrainerName = Literal["trl", "mlx-lm-lora"]
MODULES: dict[TrainerName, str] = {"trl": "feedback.training.with_trl", "mlx-lm-lora": "feedback.training.with_mlx"}
# All that the converter to GGUF takes: every matrix of a layer.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CHECKPOINTS = 10


class TrainingFailed(Exception):
    """The trainer cannot or could not do this; the message is a sentence without its point."""


class RoundRefused(Exception):
    """There is no such round, or it cannot do this now; the message is a sentence without its point."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is trained, from what, how, and with how much of the machine.

    `model` is a folder as transformers and MLX read it, `data` an export, `folder` where checkpoints and the adapter go. `imitate` weighs
    the likelihood of the chosen answer beside DPO's loss (the RPO term of arXiv 2404.19733). `threads` 0 is all of them.
    """

    method: Method
    trainer: TrainerName
    model: str
    data: str
    folder: str = ""
    rank: int = 16
    learning_rate: float = 1e-4
    epochs: float = 1.0
    max_steps: int = 0
    batch_size: int = 8
    beta: float = 0.1
    imitate: float = 1.0
    max_tokens: int = 4096
    max_answer_tokens: int = 512
    threads: int = 0
    niceness: int = 10
    seed: int = 0

    @property
    def adapter(self) -> Path:
        """Where the adapter lies when the job is done."""
        return Path(self.folder) / "adapter"

    def num_steps(self, num_rows: int) -> int:
        """How many updates it makes."""
        return self.max_steps or max(1, round(self.epochs * num_rows / self.batch_size))


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` of `num_steps` is done; `memory_bytes` is the most that the trainer has held."""

    step: int
    num_steps: int
    loss: float
    memory_bytes: int

    def tell(self) -> None:
        """From the child to `train`: a line of its own, whatever else the trainer prints."""
        sys.stdout.write(f"\n{msgspec.json.encode(self).decode()}\n")
        sys.stdout.flush()


def read_job() -> Job:
    """The child's job: the file that it was started with."""
    return msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)


def trainer_here(method: Method) -> TrainerName:
    """mlx-lm-lora on Apple silicon, except for KTO, which it does not have; TRL everywhere else."""
    is_mac = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    return "mlx-lm-lora" if is_mac and method != "kto" else "trl"


def train(job: Job) -> Iterator[Progress]:
    """Run the job in a child of low priority, from its last checkpoint if there is one; leaving ends the child. Raises TrainingFailed."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_bytes(msgspec.json.encode(job))
    threads = {"OMP_NUM_THREADS": str(job.threads)} if job.threads else {}
    environment = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HF_HUB_OFFLINE": "1"}
    command = ("nice", "-n", str(job.niceness), sys.executable, "-m", MODULES[job.trainer], str(folder / "job.json"))
    with (folder / "trainer.log").open("a+", encoding="utf-8") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True, env=environment)
        try:
            assert child.stdout is not None
            yield from (msgspec.json.decode(line, type=Progress) for line in child.stdout if line.startswith('{"step":'))
            if child.wait():
                log.seek(0)
                last = log.read().strip().rpartition("\n")[2]
                raise TrainingFailed(f"{job.trainer} ended with status {child.returncode}: {last}; all it said is in {log.name}")
        finally:
            child.terminate()
            child.wait()
