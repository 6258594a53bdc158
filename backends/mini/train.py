"""Train kefu-mini, a process to a core: `python -m backends.mini.train`. A stopped run goes on exactly from its checkpoint."""

import argparse
import itertools
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional

from backends.mini.corpus import tables
from backends.mini.data import families
from backends.mini.dialogues import Example
from backends.mini.model import ModelConfig, Muon, Qwen2, Segment, add_over_processes, num_processes, rank
from backends.mini.tokenizer import ChatFormat, train_tokenizer

MUON_LR, EMBEDDING_LR, ADAM_LR = 0.008, 6e-3, 3e-3
WARMUP_STEPS, DECAY_FROM = 20, 0.5
# What is asked is the slowest thing to learn: at first most rows are short lessons in just that.
OPENINGS_SHARE = 0.25
# Of the full dialogues: more of those that no passage answers, the hardest to tell, and more with tools than come by themselves.
MORE_SMALL_SHARE, MORE_TOOLS_SHARE = 0.2, 0.26
# Tokens of a turn that go missing: always in the short lessons, in so many of the full dialogues.
WORD_DROPOUT, GAPS_SHARE = 0.1, 0.4
CHECKPOINT_EVERY_S = 120


@dataclass(frozen=True)
class Row:
    """One shop's prompt with several dialogues behind it. Branch 0 is the shared prompt; a dialogue sees it and itself."""

    ids: list[int]
    positions: list[int]
    branches: list[int]
    is_target: list[bool]


def pack(chat: ChatFormat, family: list[Example], rng: random.Random, max_tokens: int = 1600) -> Row:
    """Lay dialogues of one shop side by side, so that its passages are computed once."""
    ids = chat.message("system", family[0].system)
    row = Row(ids, list(range(len(ids))), [0] * len(ids), [False] * len(ids))
    start = len(ids)
    for branch, example in enumerate(family, 1):
        prompt, target = chat.prompt(example), chat.target(example, rng.choice(example.answers))
        if not example.tools and rng.random() < GAPS_SHARE:  # a call repeats what was said to the letter
            prompt = with_gaps(chat, prompt, rng)
        length = len(prompt) + len(target)
        if len(row.ids) + length > max_tokens and branch > 1:
            break
        row.ids.extend(prompt + target)
        row.positions.extend(range(start, start + length))
        row.branches.extend([branch] * length)
        row.is_target.extend([False] * len(prompt) + [True] * len(target))
    return row


def pack_openings(chat: ChatFormat, family: list[Example], rng: random.Random) -> Row:
    """Lay many short lessons side by side: from what the customer says to what it is about, without passages."""
    shared = chat.message("system", family[0].shop.persona)
    row = Row(list(shared), list(range(len(shared))), [0] * len(shared), [False] * len(shared))
    told = [example for example in family if example.thought]
    for branch, example in enumerate(told, 1):
        prompt = with_gaps(chat, chat.prompt(example), rng)
        target = chat.text(opening(example))
        row.ids.extend(prompt + target)
        row.positions.extend(range(len(shared), len(shared) + len(prompt) + len(target)))
        row.branches.extend([branch] * (len(prompt) + len(target)))
        row.is_target.extend([False] * len(prompt) + [True] * len(target))
    return row


def with_gaps(chat: ChatFormat, prompt: list[int], rng: random.Random) -> list[int]:
    """Return what is said with a token missing now and then, so that no single word decides."""
    kept = set(chat.ids.values())
    return [token for token in prompt if token in kept or rng.random() > WORD_DROPOUT]


def opening(example: Example) -> str:
    """Return the part of a thought that names what is asked: up to the passage or the choice that it offers, or the first sentence."""
    thought = example.thought or ""
    if example.cited:
        return thought.partition(f" [{example.cited}]")[0]
    if example.behaviour == "clarify":
        return str(tables(example.language)["talk"]["think_clarify"]).split("{")[0].rstrip()
    # Its end says that no passage follows, and there are none to know it by.
    return re.split(r"(?<=\.) |(?<=。)", thought)[0].rstrip(".。")


def batch(chat: ChatFormat, seed: str, num_tokens: int, progress: float, multiple: int = 1) -> list[Row]:
    """Return a multiple of `multiple` rows of about `num_tokens` in all; the same for the same seed and `progress` (0 to 1).

    `progress` widens the shops from three passages to ten and thins the short lessons out.
    """
    rng = random.Random(seed)
    widths = [3, 5] if progress < 0.15 else [4, 5, 6, 8] if progress < 0.7 else [4, 6, 8, 10]
    openings_share = OPENINGS_SHARE * min(1.0, (1.2 - progress) / 0.6)
    rows: list[Row] = []
    while not rows or len(rows) % multiple or sum(len(row.ids) for row in rows) < num_tokens:
        source = f"{seed}/{len(rows)}"
        if rng.random() < openings_share:
            rows.append(pack_openings(chat, next(families(source, "train", 4, 20, tools_share=0, small_share=0.4)), rng))
        else:
            width = rng.choice(widths)
            family = next(families(source, "train", width, 18, tools_share=MORE_TOOLS_SHARE, small_share=MORE_SMALL_SHARE))
            rows.append(pack(chat, family, rng))
    return rows


def share_of(rows: list[Row], number: int, count: int) -> list[Row]:
    """Return the share of process `number` of `count`: each row, the longest first, goes to whom has the least."""
    shares: list[list[Row]] = [[] for _ in range(count)]
    for row in sorted(rows, key=lambda row: len(row.ids), reverse=True):
        min(shares, key=lambda share: sum(len(row.ids) for row in share)).append(row)
    return shares[number]


def segments_of(rows: list[Row], device: torch.device | str = "cpu") -> list[Segment]:
    """Cut rows laid end to end into shared prompts and the dialogues behind them."""
    segments: list[Segment] = []
    for row in rows:
        parent = len(segments)
        shared, *lengths = (len(list(run)) for _, run in itertools.groupby(row.branches))
        segments.append(Segment(shared))
        for length in lengths:
            mask = torch.ones(length, shared + length, dtype=torch.bool, device=device).tril(shared)
            segments.append(Segment(length, parent, mask))
    return segments


def loss_of(model: Qwen2, rows: list[Row]) -> tuple[Tensor, int]:
    """Return the mean loss over the learnt tokens and their number."""
    device = model.embed_tokens.weight.device
    ids = torch.tensor([token for row in rows for token in row.ids], device=device)
    positions = torch.tensor([position for row in rows for position in row.positions], device=device)
    known = torch.tensor([is_target for row in rows for is_target in row.is_target], device=device)
    hidden = model(ids, positions, segments_of(rows, device))
    # A target is predicted from the token before it, which is of the same dialogue: no dialogue begins with a target.
    chosen = known[1:].nonzero()[:, 0]
    return functional.cross_entropy(model.logits(hidden[chosen]).float(), ids[chosen + 1]), len(chosen)


def learning_rate(progress: float, step: int) -> float:
    """Warm up, hold, then fall linearly to zero; returns a factor."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * min(1.0, max(0.0, (1 - progress) / (1 - DECAY_FROM)))


class Trainer:
    """Model, optimizers and where the run stands. What is learnt depends on seed, tokens and number of processes, never on the clock.

    `start` is a folder that export wrote: a new run then begins with its weights, at the end of the full rate.
    """

    def __init__(self, folder: Path, config: ModelConfig, seed: int, total_tokens: int, start: Path | None = None) -> None:
        self.folder, self.seed, self.total_tokens = folder, seed, total_tokens
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(seed)
        self.model = Qwen2(config).to(self.device)
        named = list(self.model.named_parameters())
        matrices = [p for n, p in named if p.dim() == 2 and "embed" not in n]
        vectors = [p for _, p in named if p.dim() == 1]
        adam = [{"params": [self.model.embed_tokens.weight], "lr": EMBEDDING_LR}, {"params": vectors, "lr": ADAM_LR}]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, MUON_LR),
            torch.optim.AdamW(adam, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.full_rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0, "tokens": 0, "targets": 0, "loss": 0.0, "begun_at": 0.0}
        self.path = folder / "checkpoint.pt"
        if self.path.exists():
            self._resume()
        elif start is not None:
            weights = load_file(start / "model.safetensors")
            self.model.load_state_dict({name.removeprefix("model."): weight.float() for name, weight in weights.items()})
            self.state["begun_at"] = DECAY_FROM

    def _resume(self) -> None:
        saved = torch.load(self.path, weights_only=True, map_location=self.device)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.state |= saved["state"]

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        if rank() != 0:
            return
        partial = self.path.with_suffix(".partial")
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save(
            {"model": self.model.state_dict(), "optimizers": optimizers, "state": self.state, "config": asdict(self.model.config)}, partial
        )
        partial.replace(self.path)

    def _precision(self) -> torch.autocast:
        """Return bfloat16 for matrix products where the machine multiplies it faster."""
        is_fast = self.device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_fast)

    def step(self, rows: list[Row]) -> None:
        """Learn from one batch, together with the other processes."""
        factor = learning_rate(self.progress, self.state["step"])
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, self.full_rates, strict=True):
            group["lr"] = rate * factor
        num_targets = sum(sum(row.is_target) for row in rows)
        with self._precision():
            mean, count = loss_of(self.model, share_of(rows, rank(), num_processes()))
        loss = mean * (count / num_targets)
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        loss = loss.detach()
        add_over_processes([loss, *(parameter.grad for parameter in self.model.parameters())])
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        with self._precision():
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        self.state["step"] += 1
        self.state["tokens"] += sum(len(row.ids) for row in rows)
        self.state["targets"] += num_targets
        self.state["loss"] = 0.97 * self.state["loss"] + 0.03 * loss.item() if self.state["loss"] else loss.item()

    @property
    def progress(self) -> float:
        done, begun_at = self.state["tokens"] / self.total_tokens, self.state["begun_at"]
        return float(min(1.0, begun_at + (1 - begun_at) * done))

    def run(self, chat: ChatFormat, num_tokens: int, max_steps: int | None = None) -> None:
        """Train until all tokens are seen, or for `max_steps` more steps."""
        saved_at = time.monotonic()
        for done in itertools.count(1):
            if self.progress >= 1 or (max_steps is not None and done > max_steps):
                self.save()
                return
            began = time.monotonic()
            rows = batch(chat, f"{self.seed}/{self.state['step']}", num_tokens, self.progress, num_processes())
            self.step(rows)
            self.state["seconds"] += time.monotonic() - began
            if self.state["step"] % 10 == 0 and rank() == 0:
                self._report()
            if time.monotonic() - saved_at > CHECKPOINT_EVERY_S:
                self.save()
                saved_at = time.monotonic()

    def _report(self) -> None:
        state, speed = self.state, self.state["tokens"] / self.state["seconds"]
        line = {
            **state,
            "progress": self.progress,
            "tokens_per_s": round(speed),
            "left_s": round((self.total_tokens - state["tokens"]) / speed),
        }
        sys.stdout.write(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}) + "\n")
        sys.stdout.flush()


def _train(number: int, args: argparse.Namespace, meeting: str) -> None:
    """Be process `number` of the run; they meet at the file `meeting`."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if args.processes > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=args.processes)
    chat = ChatFormat(args.folder / "tokenizer.json")
    config = ModelConfig(vocab_size=chat.tokenizer.get_vocab_size(), num_hidden_layers=args.layers)
    Trainer(args.folder, config, args.seed, round(args.million_tokens * 1e6), args.start).run(chat, args.batch_tokens)


def main() -> None:
    """Parse arguments, make the tokenizer if there is none, train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/mini"))
    parser.add_argument("--start", type=Path, help="begin with these weights (a folder that export wrote), not from nothing")
    parser.add_argument("--million-tokens", type=float, default=24)
    parser.add_argument("--batch-tokens", type=int, default=4500, help="of one step, at least")
    parser.add_argument("--layers", type=int, default=6)
    # A step has about four rows, and each process needs one.
    processes = 1 if torch.cuda.is_available() else min(4, os.cpu_count() or 1)
    parser.add_argument("--processes", type=int, default=processes, help="one to a core, or to a GPU")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "tokenizer.json"
    if not path.exists() and args.start:
        shutil.copyfile(args.start / "tokenizer.json", path)
    elif not path.exists():
        train_tokenizer(args.seed).save(str(path))
    with tempfile.TemporaryDirectory() as meeting:
        multiprocessing.spawn(_train, (args, f"{meeting}/meeting"), args.processes)


if __name__ == "__main__":
    main()
