"""Random-weight Qwen2 models in GGUF, any size: for timing and memory, not for reading."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, TokenType
from gguf.quants import quantize

from bench.client import BenchError

MINI = Path(__file__).parent.parent / "backends" / "mini"
QWEN2_VOCABULARY = 151_936
QUANTIZATION = GGMLQuantizationType.Q8_0
MOSTLY_Q8_0 = 7


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a Qwen2 body."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int = QWEN2_VOCABULARY
    context_length: int = 32768

    @property
    def kv_width(self) -> int:
        return self.hidden // self.heads * self.kv_heads


SHAPES = {
    "0.5b": Shape(896, 24, 14, 2, 4864),
    "tiny": Shape(64, 2, 2, 1, 128, vocabulary=0),
}


def make_model(shape: Shape, path: Path, vocabulary: Path | None = None, seed: int = 0) -> None:
    """Write `shape` with random Q8_0 weights to `path`.

    Tokens and merges come from the GGUF file `vocabulary` (kefu-mini's own when None), filled up with unused tokens to the shape's
    vocabulary, so that the output layer has its real size. The chat template opens a thought, as QwQ's does.
    """
    writer = GGUFWriter(path, "qwen2")
    writer.add_name(f"random-{path.stem}")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(MOSTLY_Q8_0)
    num_tokens = _add_tokenizer(writer, vocabulary or _mini_vocabulary(), shape.vocabulary)
    _add_weights(writer, shape, num_tokens, np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _mini_vocabulary() -> Path:
    found = sorted(MINI.rglob("*.gguf"))
    if not found:
        raise BenchError("kefu-mini is not here yet: give a GGUF file with the tokenizer as --vocab")
    return found[0]


def _add_tokenizer(writer: GGUFWriter, source: Path, at_least: int) -> int:
    fields = GGUFReader(source).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    types: list[int] = fields["tokenizer.ggml.token_type"].contents()
    missing = max(0, at_least - len(tokens))
    tokens += [f"[PAD{len(tokens) + number}]" for number in range(missing)]
    types += [int(TokenType.UNUSED)] * missing
    _mark_thinking(tokens, types)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(fields["tokenizer.ggml.pre"].contents())
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(fields["tokenizer.ggml.merges"].contents())
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template((MINI / "chat_template.jinja").read_text(encoding="utf-8"))
    return len(tokens)


def _mark_thinking(tokens: list[str], types: list[int]) -> None:
    """A reasoning model spells its thinking tags as single tokens; the plain Qwen2 vocabulary has none, but free places."""
    for tag in ("<think>", "</think>"):
        if tag not in tokens:
            place = next((number for number, token in enumerate(tokens) if token.startswith("[PAD")), None)
            if place is None:
                raise BenchError(f"this vocabulary has neither {tag} nor a free place for it")
            tokens[place] = tag
            types[place] = int(TokenType.USER_DEFINED)


def _add_weights(writer: GGUFWriter, shape: Shape, num_tokens: int, random: np.random.Generator) -> None:
    def matrix(name: str, rows: int, columns: int, scale: float | None = None) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32) * np.float32(scale or columns**-0.5)
        writer.add_tensor(name, quantize(values, QUANTIZATION), raw_dtype=QUANTIZATION)

    def vector(name: str, size: int, value: float) -> None:
        writer.add_tensor(name, np.full(size, value, np.float32))

    matrix("token_embd.weight", num_tokens, shape.hidden, 0.02)
    vector("output_norm.weight", shape.hidden, 1.0)
    for layer in range(shape.layers):
        _add_layer(f"blk.{layer}", shape, matrix, vector)


def _add_layer(name: str, shape: Shape, matrix: Callable[[str, int, int], None], vector: Callable[[str, int, float], None]) -> None:
    hidden, kv, ffn = shape.hidden, shape.kv_width, shape.ffn
    for norm in ("attn_norm", "ffn_norm"):
        vector(f"{name}.{norm}.weight", hidden, 1.0)
    for part, rows in (("attn_q", hidden), ("attn_k", kv), ("attn_v", kv)):
        matrix(f"{name}.{part}.weight", rows, hidden)
        vector(f"{name}.{part}.bias", rows, 0.0)
    matrix(f"{name}.attn_output.weight", hidden, hidden)
    matrix(f"{name}.ffn_gate.weight", ffn, hidden)
    matrix(f"{name}.ffn_up.weight", ffn, hidden)
    matrix(f"{name}.ffn_down.weight", hidden, ffn)
