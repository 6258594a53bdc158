"""The training code: what is learnt from, what sees what, and the copying the model begins with."""

import itertools
import random
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from backends.mini import score  # noqa: E402
from backends.mini.data import families  # noqa: E402
from backends.mini.model import ModelConfig, Qwen2, Segment  # noqa: E402
from backends.mini.tokenizer import ChatFormat  # noqa: E402
from backends.mini.train import DECAY_FROM, Trainer, batch, learning_rate, loss_of, pack, segments_of, share_of  # noqa: E402

WEIGHTS = Path(score.__file__).parent / "weights" / "mlx"
TOKENIZER = WEIGHTS / "tokenizer.json"


def row():
    return pack(ChatFormat(TOKENIZER), next(families(3, "train", 4, 3)), random.Random(1))


def test_only_thoughts_and_answers_are_learnt() -> None:
    chat, packed = ChatFormat(TOKENIZER), row()
    pairs = zip(packed.ids, packed.is_target, strict=True)
    learnt = [list(group) for known, group in itertools.groupby(pairs, key=lambda pair: pair[1]) if known]
    for group in learnt:
        assert group[-1][0] == chat.ids["<|im_end|>"]
        assert chat.ids["<|im_start|>"] not in [token for token, _ in group]


def test_only_what_the_assistant_writes_holds_the_marks_of_a_tool_call() -> None:
    chat = ChatFormat(TOKENIZER)
    call = '<tool_call>\n{"name": "x", "arguments": {}}\n</tool_call>'
    assert chat.written(call).count(chat.ids["<tool_call>"]) == 1
    assert chat.ids["<tool_call>"] in chat.message("assistant", call)
    assert chat.ids["<tool_call>"] not in chat.message("user", call)


def test_a_dialogue_beside_others_scores_as_it_does_alone() -> None:
    torch.manual_seed(0)
    vocab_size = ChatFormat(TOKENIZER).tokenizer.get_vocab_size()
    model, packed = Qwen2(ModelConfig(vocab_size=vocab_size, num_hidden_layers=2)), row()
    alone = [i for i, branch in enumerate(packed.branches) if branch in (0, 2)]
    ids, positions = torch.tensor(packed.ids), torch.tensor(packed.positions)
    with torch.no_grad():
        together = model(ids, positions, segments_of([packed]))[alone]
        single = model(ids[alone], torch.arange(len(alone)), [Segment(len(alone))])
    assert torch.allclose(together, single, atol=1e-3)


def test_an_untrained_model_already_copies() -> None:
    torch.manual_seed(0)
    model, rng = Qwen2(ModelConfig()), random.Random(0)
    piece = [rng.randrange(3072) for _ in range(40)]
    ids = torch.tensor(piece + [rng.randrange(3072) for _ in range(200)] + piece)
    with torch.no_grad():
        guesses = model.logits(model(ids, torch.arange(len(ids)), [Segment(len(ids))])).argmax(-1)
    hits = guesses[-len(piece) + 3 : -1] == ids[-len(piece) + 4 :]
    assert hits.float().mean() > 0.9


def test_a_stopped_run_goes_on_as_if_it_never_had_been(tmp_path: Path) -> None:
    chat, config = ChatFormat(TOKENIZER), ModelConfig(vocab_size=ChatFormat(TOKENIZER).tokenizer.get_vocab_size(), num_hidden_layers=2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    Trainer(whole, config, 1, 10**9).run(chat, 300, max_steps=4)
    for _ in range(2):
        Trainer(parts, config, 1, 10**9).run(chat, 300, max_steps=2)
    first, second = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, parts))
    assert first["state"]["step"] == second["state"]["step"] == 4
    assert all(torch.equal(weight, second["model"][name]) for name, weight in first["model"].items())
    assert not torch.equal(first["model"]["embed_tokens.weight"], Qwen2(config).embed_tokens.weight)


def test_the_learning_rate_warms_up_holds_and_ends_at_zero() -> None:
    assert learning_rate(0.0, 0) < learning_rate(0.01, 10) < learning_rate(0.3, 1000) == 1
    assert learning_rate(1.0, 5000) == 0


def gradients(model, rows, share=1.0):
    model.zero_grad()
    (loss_of(model, rows)[0] * share).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_processes_together_learn_what_one_would_from_the_whole_batch() -> None:
    torch.manual_seed(0)
    chat = ChatFormat(TOKENIZER)
    rows = batch(chat, "1/3", 3000, 0.7, multiple=2)
    model = Qwen2(ModelConfig(vocab_size=chat.tokenizer.get_vocab_size(), num_hidden_layers=2))
    shares = [share_of(rows, number, 2) for number in range(2)]
    assert sorted(row.ids for share in shares for row in share) == sorted(row.ids for row in rows)
    sizes = [sum(sum(row.is_target) for row in share) for share in shares]
    parts = [gradients(model, share, size / sum(sizes)) for share, size in zip(shares, sizes, strict=True)]
    for whole, first, second in zip(gradients(model, rows), *parts, strict=True):
        assert torch.allclose(whole, first + second, atol=1e-5)


def test_two_processes_train_and_a_run_begins_with_what_was_shipped(tmp_path: Path) -> None:
    arguments = ["--start", str(WEIGHTS), "--million-tokens", "0.004", "--batch-tokens", "1000", "--processes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "backends.mini.train", "--folder", str(tmp_path), *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["state"]["begun_at"] == DECAY_FROM
    # The first steps are small, and of what the weights know already.
    assert 0 < saved["state"]["loss"] < 1
    began = Trainer(tmp_path / "none", ModelConfig(vocab_size=4096), 1, 10**9, start=WEIGHTS).model.state_dict()
    moved = [(weight - began[name]).abs().mean() for name, weight in saved["model"].items()]
    assert all(0 < step < 0.02 for step in moved)
