"""A random model: the shape that was asked for, a vocabulary filled up, thinking tags as single tokens."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from bench.client import BenchError
from bench.model import SHAPES, make_model
from bench.servers import end_token_ids

TOKENS = ["a", "b", "ab", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    writer = GGUFWriter(tmp_path / "vocabulary.gguf", "qwen2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1, 1, 1, 3, 3, 3])
    writer.add_token_merges(["a b"])
    writer.add_tensor("none", np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "vocabulary.gguf"


def test_the_vocabulary_is_filled_up_and_holds_the_thinking_tags(tmp_path: Path, vocabulary: Path) -> None:
    path = tmp_path / "model.gguf"
    make_model(replace(SHAPES["tiny"], vocabulary=64), path, vocabulary)
    reader = GGUFReader(path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == len(reader.fields["tokenizer.ggml.token_type"].contents()) == 64
    assert tokens[:8] == [*TOKENS, "<think>", "</think>"]
    assert tokens[8] == "[PAD8]"
    shapes = {tensor.name: tuple(int(size) for size in tensor.shape) for tensor in reader.tensors}
    assert shapes["token_embd.weight"] == (64, 64)
    assert shapes["blk.1.attn_k.weight"] == (64, 32)
    assert shapes["blk.1.ffn_down.weight"] == (128, 64)
    assert "<think>" in reader.fields["tokenizer.chat_template"].contents()
    assert end_token_ids(path) == [3, 5]


def test_a_vocabulary_without_room_for_the_tags_is_refused(tmp_path: Path, vocabulary: Path) -> None:
    with pytest.raises(BenchError, match="<think>"):
        make_model(replace(SHAPES["tiny"], vocabulary=0), tmp_path / "model.gguf", vocabulary)
