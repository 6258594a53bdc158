"""A random LoRA for the built-in model, in the forms that PEFT and mlx-lm write."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

MINI = Path(__file__).parents[2] / "backends" / "mini" / "weights"
CONFIG = json.loads((MINI / "mlx" / "config.json").read_text())
RANK, ALPHA = 4, 8.0

Matrices = dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]


def sizes() -> dict[str, tuple[int, int]]:
    """Each projection of a layer: how many values go out and in."""
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    narrow = hidden // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]
    attention = {"q_proj": (hidden, hidden), "k_proj": (narrow, hidden), "v_proj": (narrow, hidden), "o_proj": (hidden, hidden)}
    feed_forward = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    parts = {"self_attn": attention, "mlp": feed_forward}
    return {f"{part}.{name}": shape for part, shapes in parts.items() for name, shape in shapes.items()}


def random_matrices(seed: int, strength: float = 0.03) -> Matrices:
    """A [rank, in] and B [out, rank] of every projection of every layer, strong enough to change what is said."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return (strength * random.standard_normal((rows, columns))).astype(np.float32)

    layers = range(CONFIG["num_hidden_layers"])
    return {f"layers.{i}.{name}": (matrix(RANK, into), matrix(out, RANK)) for i in layers for name, (out, into) in sizes().items()}


def save_file(tensors: dict[str, npt.NDArray[np.float32]], path: Path) -> None:
    """A safetensors file: a length, a JSON header, the bytes."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(tensor.tobytes() for tensor in tensors.values()))


def write_peft(folder: Path, matrices: Matrices, **config: object) -> Path:
    """As `PeftModel.save_pretrained` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (a, b) in matrices.items():
        tensors[f"base_model.model.model.{name}.lora_A.weight"], tensors[f"base_model.model.model.{name}.lora_B.weight"] = a, b
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "use_dora": False, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def write_mlx(folder: Path, matrices: Matrices, **config: object) -> Path:
    """As `mlx_lm.lora` leaves it: transposed, with a scale in place of alpha."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (a, b) in matrices.items():
        tensors[f"model.{name}.lora_a"], tensors[f"model.{name}.lora_b"] = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    save_file(tensors, folder / "adapters.safetensors")
    parameters = {"rank": RANK, "scale": ALPHA / RANK, "dropout": 0.0}
    (folder / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "lora", "lora_parameters": parameters, **config}))
    return folder
