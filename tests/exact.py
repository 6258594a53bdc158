"""The built-in model in float32. Its sums differ by a millionth with the batch's shape, so texts can be compared token by token.

Quantized products turn a last bit into a visible difference, and which ones do depends on the CPU.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from backends.adapter import read_safetensors
from backends.gguf_file import Tensor
from tests.backends.lora import save_file

NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
Deltas = Mapping[str, Tensor]


def write_floats(path: Path, base: str, deltas: Deltas | None = None) -> Path:
    """A copy of a GGUF file or an MLX folder, `deltas` added to the weights that they name (`layers.0.self_attn.q_proj`)."""
    if Path(base).is_dir():
        shutil.copytree(base, path)
        tensors = {name: tensor.astype(np.float32) for name, tensor in read_safetensors(Path(base) / "model.safetensors").items()}
        for name, delta in (deltas or {}).items():
            tensors[f"model.{name}.weight"] += delta
        save_file(tensors, path / "model.safetensors")
    else:
        _write_gguf(path, base, {_gguf_name(name): delta for name, delta in (deltas or {}).items()})
    return path


def _gguf_name(name: str) -> str:
    _, layer, _, part = name.split(".")
    return f"blk.{layer}.{NAMES[part.removesuffix('_proj')]}.weight"


def _write_gguf(path: Path, base: str, deltas: Deltas) -> None:
    reader = gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(str(path), reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values + deltas.get(tensor.name, np.float32(0)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
