"""Trains with TRL and PEFT on PyTorch: `python -m feedback.training.with_trl JOB.json`."""

import importlib
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

from feedback.rewards import kefu_reward
from feedback.training.job import CHECKPOINTS, TARGETS, Job, Progress, read_job
from feedback.training.rows import opening, read_rows

TRAINERS = {"orpo": "trl.experimental.orpo"}  # the others are in trl itself
NUM_GENERATIONS = 4


class Report(TrainerCallback):  # type: ignore[misc]
    """Tells of every step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            Progress(state.global_step, state.max_steps, float(logs["loss"]), _peak_bytes()).tell()


def train(job: Job) -> None:
    """Train, from the last checkpoint if there is one, and save the adapter as PEFT does."""
    if job.threads:
        torch.set_num_threads(job.threads)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    rows = read_rows(Path(job.data), job.method, opening(tokenizer))
    trl, kind = importlib.import_module(TRAINERS.get(job.method, "trl")), job.method.upper()
    more = {"reward_funcs": kefu_reward} if job.method == "grpo" else {}
    trainer = getattr(trl, f"{kind}Trainer")(
        model=AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32),
        args=getattr(trl, f"{kind}Config")(**_settings(job, job.num_steps(len(rows)))),
        train_dataset=Dataset.from_list([{**row, "length": len(str(row))} for row in rows]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=job.rank, lora_alpha=2 * job.rank, target_modules=list(TARGETS), task_type="CAUSAL_LM"),
        callbacks=[Report()],
        **more,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=any(Path(job.folder).glob("checkpoints/checkpoint-*")))
    trainer.save_model(str(job.adapter))


def _settings(job: Job, num_steps: int) -> dict[str, Any]:
    """The arguments that differ from TRL's defaults."""
    has_gpu = torch.cuda.is_available()
    settings: dict[str, Any] = {
        "output_dir": str(Path(job.folder) / "checkpoints"), "save_steps": max(1, num_steps // CHECKPOINTS), "save_total_limit": 2,
        "max_steps": num_steps, "per_device_train_batch_size": job.batch_size, "learning_rate": job.learning_rate, "seed": job.seed,
        "lr_scheduler_type": "cosine", "warmup_steps": num_steps // 20, "logging_steps": 1, "disable_tqdm": True, "report_to": [],
        "bf16": has_gpu, "gradient_checkpointing": has_gpu, "dataloader_pin_memory": has_gpu,
    }  # fmt: skip
    if job.method != "sft":
        settings["beta"] = job.beta
    if job.method == "dpo":
        settings |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, job.imitate]}
        # Rows of a like length share a batch: a third of a batch of chance is padding.
        settings |= {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
    if job.method == "grpo":
        return {**settings, "num_generations": NUM_GENERATIONS, "max_completion_length": job.max_answer_tokens}
    return {**settings, "max_length": job.max_tokens}


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    train(read_job())
