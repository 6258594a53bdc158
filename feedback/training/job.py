"""One training run as a job for a child process, and how it goes while it runs."""

import fcntl
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import msgspec

Method = Literal["dpo", "kto", "orpo", "grpo", "sft", "reward"]
Serving = Literal["run", "throttle", "pause"]
TrainerName = Literal["trl", "mlx-lm-lora"]
MODULES: dict[TrainerName, str] = {"trl": "feedback.training.with_trl", "mlx-lm-lora": "feedback.training.with_mlx"}
# All that the converter to GGUF takes: every matrix of a layer.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CHECKPOINTS = 10
# Locked in a round's folder while it trains, and in the data folder while a server has a model in memory.
CLAIM, LOADED = "training.lock", "engine.lock"


class TrainingFailed(Exception):
    """The trainer cannot or could not do this; the message is a sentence without its point."""


class RoundRefused(Exception):
    """There is no such round, or it cannot do this now; the message is a sentence without its point."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is trained, from what, how, and with how much of the machine.

    `model` is a folder as transformers and MLX read it, `data` an export, `folder` where checkpoints and the adapter go. `imitate` weighs
    the likelihood of the chosen answer beside DPO's loss (the RPO term of arXiv 2404.19733). `threads` 0 is all of them. `reward_model` is
    a round whose model orders, in GRPO, what the rules call equally right; `serving` is what a server on this machine does meanwhile.
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
    reward_model: str = ""
    serving: Serving = "run"

    @property
    def adapter(self) -> Path:
        """Where the adapter lies when the job is done."""
        return Path(self.folder) / "adapter"

    def num_steps(self, num_rows: int) -> int:
        """How many updates it makes."""
        return self.max_steps or max(1, round(self.epochs * num_rows / self.batch_size))


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` of `num_steps` is done; `memory_bytes` is the most that the trainer has held.

    First and last of GRPO, `verified` is what the rules alone give, on average, to answers to the same questions. Last of a reward model,
    `ranked` has a row for each held-out pair: by how much the better answer's score is higher, and by how many characters it is longer.
    """

    step: int
    num_steps: int
    loss: float
    memory_bytes: int
    verified: float | None = None
    ranked: list[tuple[float, int]] = field(default_factory=list)

    def tell(self) -> None:
        """From the child to `train`: a line of its own, whatever else the trainer prints."""
        sys.stdout.write(f"\n{msgspec.json.encode(self).decode()}\n")
        sys.stdout.flush()


def read_job() -> Job:
    """The child's job: the file that it was started with."""
    return msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)


def trainer_here(method: Method, reward_model: str = "") -> TrainerName:
    """mlx-lm-lora on Apple silicon, except for KTO and reward models, which it does not have; TRL everywhere else."""
    is_mac = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    return "mlx-lm-lora" if is_mac and method not in {"kto", "reward"} and not reward_model else "trl"


def claim(folder: Path, serving: Serving) -> IO[str]:
    """The locked file of a round's folder that asks servers for this; the kernel unlocks it when all who inherited it have ended.

    To `pause`, it comes when every server has let its model go. A round that another process trains is waited for.
    """
    file = (folder / CLAIM).open("a", encoding="ascii")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(0)
    file.write(serving)
    file.flush()
    if serving == "pause":
        with (folder.parents[1] / LOADED).open("a") as loaded:
            fcntl.flock(loaded, fcntl.LOCK_EX)
    return file


def asked_for(data_dir: Path) -> Serving:
    """The most that a round in training asks for; the dead ask for nothing."""
    asked = set[str]()
    for path in data_dir.glob(f"rounds/*/{CLAIM}"):
        with suppress(FileNotFoundError), path.open(encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                asked.add(file.read())
    return "pause" if "pause" in asked else "throttle" if "throttle" in asked else "run"


def train(job: Job) -> Iterator[Progress]:
    """Run the job in a child of low priority, from its last checkpoint if there is one; leaving ends the child. Raises TrainingFailed."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_bytes(msgspec.json.encode(job))
    threads = {"OMP_NUM_THREADS": str(job.threads)} if job.threads else {}
    environment = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HF_HUB_OFFLINE": "1"}
    command = ("nice", "-n", str(job.niceness), sys.executable, "-m", MODULES[job.trainer], str(folder / "job.json"))
    with claim(folder, job.serving) as held, (folder / "trainer.log").open("a+", encoding="utf-8") as log:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True, env=environment, pass_fds=(held.fileno(),)
        )
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
