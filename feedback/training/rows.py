"""The rows of an export as a trainer takes them: rendered for models that think, as messages for others."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feedback.training.job import Method, TrainingFailed

Row = dict[str, Any]
# Fewer rows teach noise; KTO wants a third of them of either label.
LEAST: Mapping[Method, int] = {"dpo": 200, "orpo": 200, "kto": 300, "grpo": 100, "sft": 50, "reward": 1000}
# The rows that a method reads, where they have another name.
FOLDERS: Mapping[Method, str] = {"orpo": "dpo", "reward": "rm"}


def snapshot_sha256(data: Path) -> str:
    """One digest over the names and contents of all rows that a trainer may read. Raises TrainingFailed when there are none."""
    files = sorted(path for folder in ("trl", "trl_rendered") for path in (data / folder).glob("*/*.jsonl"))
    if not files:
        raise TrainingFailed(f"{data} holds no export: there is no trl/*/*.jsonl in it")
    told = "".join(f"{path.relative_to(data)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files)
    return hashlib.sha256(told.encode()).hexdigest()


def opening(tokenizer: Any) -> str:
    """What a model's template puts before an answer: its generation prompt."""
    asked = [{"role": "user", "content": "?"}]
    whole, stem = (tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=more) for more in (True, False))
    return str(whole).removeprefix(str(stem))


def read_rows(data: Path, method: Method, opens: str) -> list[Row]:
    """The training rows of `method`, for a model whose answers open as `opens` says.

    Where that begins a thought, the template drops thoughts from what was said, so that messages would lose them: then rows must be
    rendered, and for this very opening. GRPO writes its own answers and a reward model judges what a customer reads: these want messages.
    Raises TrainingFailed.
    """
    name = FOLDERS.get(method, method)
    if "<think>" not in opens or method in {"grpo", "reward"}:
        return _read(data / "trl" / name / "train.jsonl")
    path = data / "trl_rendered" / name / "train.jsonl"
    if method == "sft" and not path.exists():
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in _read(path.parents[1] / "dpo" / "train.jsonl")]
    else:
        rows = _read(path)
    # Answers of people have no thought: there the prompt closes it, empty.
    if not all(opens in row["prompt"] and row["prompt"].rpartition(opens)[2].strip() in {"", "</think>"} for row in rows):
        raise TrainingFailed(f"the rendered rows do not open as this model does ({opens!r}): they were made with another template")
    return rows


def held_out(data: Path, method: Method) -> list[Row]:
    """The rows that are not trained on, as messages; none where the export has none. Raises TrainingFailed."""
    path = data / "trl" / FOLDERS.get(method, method) / "valid.jsonl"
    return _read(path) if path.exists() else []


def too_few(data: Path, method: Method) -> str:
    """Why there is not enough to train on; empty when there is. Raises TrainingFailed."""
    path = Path(FOLDERS.get(method, method), "train.jsonl")
    rows = _read(next(data.glob(f"trl*/{path}"), data / "trl" / path))
    labels = Counter(row.get("label") for row in rows)
    if len(rows) < LEAST[method]:
        return f"{len(rows)} rows, and {method} wants {LEAST[method]}: {LEAST[method] - len(rows)} are missing"
    if method == "kto" and min(labels[True], labels[False]) < LEAST[method] // 3:
        return f"{labels[True]} good and {labels[False]} bad rows, and kto wants {LEAST[method] // 3} of either"
    return ""


def _read(path: Path) -> list[Row]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise TrainingFailed(f"{path} cannot be read: {error}") from error
    if not rows:
        raise TrainingFailed(f"{path} is empty")
    return rows
