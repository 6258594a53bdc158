"""Trains with mlx-lm-lora on Apple silicon: `python -m feedback.training.with_mlx JOB.json`.

Its loaders put every text through the chat template, which in QwQ's drops the thought. So all rows are rendered here, and the trainer
reads a copy of the model's folder whose template only joins. It has no KTO, holds the base twice for DPO and GRPO, and a run that is
resumed begins its optimizer anew.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlx_lm_lora.train import CONFIG_DEFAULTS, TrainingCallback, build_parser, mx, run
from mlx_lm_lora.trainer.grpo_reward_functions import register_reward_function
from transformers import AutoTokenizer

from feedback.rewards import kefu_reward
from feedback.training.job import CHECKPOINTS, Job, Progress, read_job
from feedback.training.rows import Row, opening, read_rows

VERBATIM = "{% for message in messages %}{{ message.content }}{% endfor %}"


class Report(TrainingCallback):  # type: ignore[misc]
    """Tells of every step."""

    def __init__(self, num_steps: int, num_done: int) -> None:
        self._num_steps, self._num_done = num_steps, num_done

    def on_train_loss_report(self, info: dict[str, float]) -> None:
        step, memory_bytes = self._num_done + int(info["iteration"]), int(1e9 * info["peak_memory"])
        Progress(step, self._num_steps, float(info["train_loss"]), memory_bytes).tell()


def train(job: Job) -> None:
    """Train, from the last checkpoint if there is one, and leave the adapter as mlx-lm reads it."""
    folder, tokenizer = Path(job.folder), AutoTokenizer.from_pretrained(job.model)
    rows = [_rendered(row, tokenizer) for row in read_rows(Path(job.data), job.method, opening(tokenizer))]
    (folder / "rows").mkdir(exist_ok=True)
    (folder / "rows" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    num_steps, saved = job.num_steps(len(rows)), sorted(job.adapter.glob("*_adapters.safetensors"))[-1:]
    num_done = sum(int(path.name.partition("_")[0]) for path in saved)
    register_reward_function("kefu_reward")(kefu_reward)
    # The trainer wants the memory wired that Metal recommends. Macs have panicked under that, and a CPU names none.
    info = {"max_recommended_working_set_size": 0, **mx.device_info()}
    mx.device_info, mx.set_wired_limit = (lambda: info), (lambda num_bytes: 0)
    options = {
        **vars(build_parser().parse_args([])), **CONFIG_DEFAULTS,
        "train": True, "fuse": False, "train_mode": job.method, "model": str(_verbatim(Path(job.model), folder / "model")),
        "data": str(folder / "rows"), "adapter_path": str(job.adapter), "resume_adapter_file": str(saved[0]) if saved else None,
        "lora_parameters": {"rank": job.rank, "dropout": 0.0, "scale": 2.0}, "learning_rate": job.learning_rate, "beta": job.beta,
        "batch_size": job.batch_size, "iters": max(1, num_steps - num_done), "steps_per_report": 1, "seed": job.seed,
        "save_every": max(1, num_steps // CHECKPOINTS), "mask_prompt": True, "grad_checkpoint": True, "reward_functions": "kefu_reward",
        "max_seq_length": job.max_tokens, "max_completion_length": job.max_answer_tokens,
    }  # fmt: skip
    run(
        SimpleNamespace(**{name: options.get(name) for name in {*options, *vars(build_parser().parse_args([]))}}),
        Report(num_steps, num_done),
    )


def _rendered(row: Row, tokenizer: Any) -> Row:
    """The row as strings: the prompt up to the opening of the answer, and answers with their end token."""
    if isinstance(row.get("prompt"), str):
        return row
    if "messages" in row:
        row = {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
    texts: Row = {name: f"{row[name][-1]['content']}{tokenizer.eos_token}" for name in ("chosen", "rejected", "completion") if name in row}
    return {
        **row,
        **texts,
        "prompt": tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True),
        "system": "",
    }


def _verbatim(model: Path, copy: Path) -> Path:
    """Links to the model's files, beside a tokenizer whose template joins what it is given."""
    copy.mkdir(exist_ok=True)
    for path in model.iterdir():
        if not (copy / path.name).exists() and path.name not in {"tokenizer_config.json", "chat_template.jinja"}:
            (copy / path.name).symlink_to(path.absolute())
    config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    (copy / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": VERBATIM}), encoding="utf-8")
    return copy


if __name__ == "__main__":
    train(read_job())
