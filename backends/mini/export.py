"""Write a trained checkpoint as a GGUF and as an MLX/Hugging Face folder: `python -m backends.mini.export`."""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from backends.mini.tokenizer import CONTROL, MARKERS

Weights = dict[str, NDArray[np.float32]]

HERE = Path(__file__).parent
TEMPLATE = HERE / "chat_template.jinja"
SAMPLING = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
# Hugging Face's name of a part -> GGUF's (llama.cpp, gguf-py/gguf/constants.py).
GGUF_PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """Return GGUF's name for one of the model's parameters."""
    if name.startswith("layers."):
        _, layer, rest = name.split(".", 2)
        part, kind = rest.rsplit(".", 1)
        return f"blk.{layer}.{GGUF_PARTS[part]}.{kind}"
    return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]


def write_gguf(path: Path, weights: Weights, config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    """Write matrices as Q8_0 and the rest as F32."""
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_name("kefu-mini")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _add_tokenizer(writer, tokenizer)
    for name, weight in weights.items():
        if weight.ndim == 2:
            quantized = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(gguf_name(name), quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(gguf_name(name), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    vocabulary = dict(tokenizer["model"]["vocab"]) | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    types = dict.fromkeys(CONTROL, gguf.TokenType.CONTROL) | dict.fromkeys(MARKERS, gguf.TokenType.USER_DEFINED)
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([types.get(token, gguf.TokenType.NORMAL) for token in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(vocabulary["<|im_end|>"])
    writer.add_pad_token_id(vocabulary["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE.read_text(encoding="utf-8"))


def write_folder(folder: Path, weights: Weights, config: dict[str, Any], tokenizer_path: Path) -> None:
    """Write config, float16 weights and tokenizer as transformers and mlx-lm load them."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token["content"]: token["id"] for token in json.loads(tokenizer_path.read_text(encoding="utf-8"))["added_tokens"]}
    end, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    shape = config | {"head_dim": config["hidden_size"] // config["num_attention_heads"]}
    model = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "hidden_act": "silu",
    }
    tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False}
    documents = {
        "config.json": model | shape | {"eos_token_id": end, "pad_token_id": pad},
        "generation_config.json": {"do_sample": True, **SAMPLING, "eos_token_id": [end, pad], "pad_token_id": pad},
        "tokenizer_config.json": tokens
        | {
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "chat_template": TEMPLATE.read_text(encoding="utf-8"),
        },
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copyfile(tokenizer_path, folder / "tokenizer.json")
    save_file(
        {f"model.{name}": weight.astype(np.float16) for name, weight in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def _rounded(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round a matrix to what Q8_0 can hold, so that both forms carry the same weights."""
    if weight.ndim != 2:
        return np.ascontiguousarray(weight)
    kind = gguf.GGMLQuantizationType.Q8_0
    rounded: NDArray[np.float32] = gguf.quants.dequantize(gguf.quants.quantize(np.ascontiguousarray(weight), kind), kind)
    return rounded


def main() -> None:
    """Parse arguments, read the checkpoint, write both forms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/mini"), help="where train left checkpoint.pt and tokenizer.json")
    parser.add_argument("--weights", type=Path, default=HERE / "weights")
    args = parser.parse_args()
    saved = torch.load(args.folder / "checkpoint.pt", weights_only=True, map_location="cpu")
    weights = {name: _rounded(weight.float().numpy()) for name, weight in saved["model"].items()}
    tokenizer_path = args.folder / "tokenizer.json"
    args.weights.mkdir(parents=True, exist_ok=True)
    write_gguf(args.weights / "kefu-mini.gguf", weights, saved["config"], json.loads(tokenizer_path.read_text(encoding="utf-8")))
    write_folder(args.weights / "mlx", weights, saved["config"], tokenizer_path)
    for path in sorted(args.weights.rglob("*.*")):
        sys.stdout.write(f"{path.stat().st_size / 1e6:8.2f} MB  {path}\n")


if __name__ == "__main__":
    main()
