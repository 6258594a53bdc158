"""Trains with TRL and PEFT on PyTorch: `python -m feedback.training.with_trl JOB.json`."""

import importlib
import resource
import sys
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback, TrainerCallback, set_seed

from feedback.rewards import kefu_reward, staged
from feedback.training.job import CHECKPOINTS, TARGETS, Job, Progress, read_job
from feedback.training.rows import held_out, opening, read_rows
from feedback.training.verify import answer_of

TRAINERS = {"orpo": "trl.experimental.orpo"}  # the others are in trl itself
NUM_GENERATIONS = 4
# So many questions, the same at the start and at the end, tell what the rules alone think of a GRPO round.
NUM_ASKED = 64
DTYPE = torch.bfloat16 if torch.cuda.is_available() else torch.float32


class Report(TrainerCallback):  # type: ignore[misc]
    """Tells of every step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            Progress(state.global_step, state.max_steps, float(logs["loss"]), _peak_bytes()).tell()


class Rewarding:
    """What GRPO strives for: what the rules verify, and among answers that are equally right by them a reward model's order.
    A thought that never ends is no answer. `verified` are the rules' rewards so far."""

    def __init__(self, job: Job, tokenizer: Any) -> None:
        self.verified = list[float]()
        self._tokenizer, self._has_thoughts, self._model = tokenizer, "<think>" in opening(tokenizer), None
        if job.reward_model:
            folder = Path(job.folder).parent / job.reward_model / "adapter"
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            self._model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=DTYPE, device_map="auto")

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        said = [each[-1]["content"] for each in completions]
        is_answer = ["</think>" in text or not self._has_thoughts for text in said]
        rules = [reward * told for reward, told in zip(kefu_reward(prompts, completions, **columns), is_answer, strict=True)]
        self.verified += rules
        if self._model is None:
            return rules
        talks = [[*asked, {"role": "assistant", "content": answer_of(text)}] for asked, text in zip(prompts, said, strict=True)]
        judged = zip(prompts, rules, scores(self._model, self._tokenizer, talks), strict=True)
        groups = [[each[1:] for each in group] for _, group in groupby(judged, key=lambda each: each[0])]
        return [reward for group in groups for reward in staged(*zip(*group, strict=True))]

    def tell(self, trainer: Any) -> None:
        """Ask the held-out questions, and tell what the rules give for the answers."""
        self.verified.clear()
        trainer.evaluate()
        Progress(trainer.state.global_step, trainer.args.max_steps, 0.0, _peak_bytes(), fmean(self.verified)).tell()


def scores(model: Any, tokenizer: Any, talks: list[Any]) -> list[float]:
    """How good a reward model finds the last turn of each, on its own scale."""
    model.eval()
    texts = (tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks)
    with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=DTYPE is torch.bfloat16):
        read = (tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device) for text in texts)
        return [model(input_ids=each["input_ids"]).logits.item() for each in read]


def train(job: Job) -> None:
    """Train, from the last checkpoint if there is one, and save the adapter as PEFT does."""
    if job.threads:
        torch.set_num_threads(job.threads)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    rows, spare = read_rows(Path(job.data), job.method, opening(tokenizer)), held_out(Path(job.data), job.method)
    trl, kind = importlib.import_module(TRAINERS.get(job.method, "trl")), {"reward": "Reward"}.get(job.method, job.method.upper())
    auto, head, task, more = AutoModelForCausalLM, dict[str, int](), "CAUSAL_LM", dict[str, Any]()
    if job.method == "reward":
        auto, head, task = AutoModelForSequenceClassification, {"num_labels": 1}, "SEQ_CLS"
    if job.method == "grpo":
        more = {"reward_funcs": Rewarding(job, tokenizer), "eval_dataset": Dataset.from_list((spare or rows)[:NUM_ASKED])}
    set_seed(job.seed)
    trainer = getattr(trl, f"{kind}Trainer")(
        model=auto.from_pretrained(job.model, dtype=DTYPE, **head),
        args=getattr(trl, f"{kind}Config")(**_settings(job, job.num_steps(len(rows)))),
        train_dataset=Dataset.from_list([{**row, "length": len(str(row))} for row in rows]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=job.rank, lora_alpha=2 * job.rank, target_modules=list(TARGETS), task_type=task),
        callbacks=[Report()],
        **more,
    )
    trainer.remove_callback(PrinterCallback)
    if more:
        more["reward_funcs"].tell(trainer)
    trainer.train(resume_from_checkpoint=any(Path(job.folder).glob("checkpoints/checkpoint-*")))
    trainer.save_model(str(job.adapter))
    if more:
        more["reward_funcs"].tell(trainer)
    if job.method == "reward" and spare:
        better, worse = (scores(trainer.model, tokenizer, [row[name] for row in spare]) for name in ("chosen", "rejected"))
        longer = [len(row["chosen"][-1]["content"]) - len(row["rejected"][-1]["content"]) for row in spare]
        ranked = [(high - low, by) for high, low, by in zip(better, worse, longer, strict=True)]
        Progress(trainer.state.global_step, trainer.args.max_steps, 0.0, _peak_bytes(), ranked=ranked).tell()


def _settings(job: Job, num_steps: int) -> dict[str, Any]:
    """The arguments that differ from TRL's defaults."""
    has_gpu = torch.cuda.is_available()
    settings: dict[str, Any] = {
        "output_dir": str(Path(job.folder) / "checkpoints"), "save_steps": max(1, num_steps // CHECKPOINTS), "save_total_limit": 2,
        "max_steps": num_steps, "per_device_train_batch_size": job.batch_size, "learning_rate": job.learning_rate, "seed": job.seed,
        "lr_scheduler_type": "cosine", "warmup_steps": num_steps // 20, "logging_steps": 1, "disable_tqdm": True, "report_to": [],
        "bf16": has_gpu, "gradient_checkpointing": has_gpu, "dataloader_pin_memory": has_gpu,
    }  # fmt: skip
    if job.method not in {"sft", "reward"}:
        settings["beta"] = job.beta
    if job.method == "dpo":
        settings |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, job.imitate]}
        # Rows of a like length share a batch: a third of a batch of chance is padding.
        settings |= {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
    if job.method == "grpo":
        return {**settings, "num_generations": NUM_GENERATIONS, "num_generations_eval": 1, "max_completion_length": job.max_answer_tokens}
    return {**settings, "max_length": job.max_tokens}


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    train(read_job())
