"""kefu-mini's tokenizer: a byte-level BPE cut exactly as Qwen2 cuts text, and the chat format in token ids."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from backends.mini.corpus import tables
from backends.mini.data import families
from backends.mini.dialogues import Example

# Qwen2's pre-tokenizer (tokenizer.json of Qwen2); llama.cpp knows it as "qwen2".
QWEN2_PATTERN = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
VOCAB_SIZE = 4096
_CJK = re.compile(r"[\u3000-\u9fff\uff00-\uffef]")


def _texts(seed: int) -> Iterator[str]:
    for family in itertools.islice(families(seed, "train"), 2500):
        yield _spaced(family[0].system)
        for example in family:
            yield from (_spaced(content) for _, content in example.turns)
            yield _spaced(f"{example.thought}\n{example.answers[0]}")
    for language, repeats in (("en", 40), ("zh", 60)):
        words = tables(language)["words"]["common"]
        yield from (" " + _spaced(words) for _ in range(repeats))


def _spaced(text: str) -> str:
    """Part Chinese characters, so that each stays one token and copies the same wherever it stands."""
    return _CJK.sub(lambda match: f"\n{match[0]}\n", text)


def train_tokenizer(seed: int) -> Tokenizer:
    """Learn the vocabulary from generated dialogues and common words; all 256 bytes and the special tokens are in it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    size = VOCAB_SIZE - len(CONTROL) - len(MARKERS)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(_texts(seed), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKERS])
    return tokenizer


class ChatFormat:
    """Renders examples to token ids as inference does. Text that spells a special token stays ordinary bytes."""

    def __init__(self, path: Path) -> None:
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        # Without its added tokens: what customers type can never become a control token.
        self.plain = _without_added(self.tokenizer)
        self.ids: dict[str, int] = {token: self.tokenizer.get_vocab()[token] for token in CONTROL + MARKERS}

    def text(self, text: str) -> list[int]:
        return list(self.plain.encode(text).ids)

    def written(self, text: str) -> list[int]:
        """Return the ids of what the assistant writes; only there are the tool call's marks tokens of their own."""
        parts = re.split(r"(</?tool_call>)", text)
        return [token for part in parts for token in ([self.ids[part]] if part in self.ids else self.text(part))]

    def message(self, role: str, content: str) -> list[int]:
        if role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
        body = [*self.text(f"{role}\n"), *self.written(content)] if role == "assistant" else self.text(f"{role}\n{content}")
        return [self.ids["<|im_start|>"], *body, self.ids["<|im_end|>"], *self.text("\n")]

    def prompt(self, example: Example) -> list[int]:
        """Return the ids after the system message and before the first generated token."""
        turns = [token for role, content in example.turns for token in self.message(role, content)]
        opening = [self.ids["<|im_start|>"], *self.text("assistant\n"), self.ids["<think>"]]
        if example.thought is None:
            return [*turns, *opening, *self.text("\n\n"), self.ids["</think>"], *self.text("\n\n")]
        return [*turns, *opening, *self.text("\n")]

    def target(self, example: Example, answer: str) -> list[int]:
        """Return the ids the model must write."""
        ending = [*self.written(answer), self.ids["<|im_end|>"]]
        if example.thought is None:
            return ending
        return [*self.text(f"{example.thought}\n"), self.ids["</think>"], *self.text("\n\n"), *ending]


def _without_added(tokenizer: Tokenizer) -> Tokenizer:
    import json

    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = []
    plain: Tokenizer = Tokenizer.from_str(json.dumps(data))
    return plain
