"""LoRA adapters: a registry on disk, and the conversion of PEFT and mlx-lm folders to the GGUF file that both engines read."""

import hashlib
import json
import math
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.gguf_file import Shapes, Tensor, read_header, read_tensors, write_file
from backends.protocol import AdapterRefused

KEY = re.compile(r"([a-z0-9-]{1,40})@([0-9a-f]{12})")
FIELDS = {"general.type": "adapter", "adapter.type": "lora"}
# In these architectures GGUF keeps the rows of Q and K in Hugging Face's order.
ARCHITECTURES = ("qwen2", "qwen3")
PARTS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
# PEFT: base_model.model.model.layers.0.mlp.up_proj.lora_A.weight [rank, in]; mlx-lm: layers.0.mlp.up_proj.lora_a [in, rank].
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?:model\.)?layers\.(\d+)\.([a-z_.]+)\.lora_(?:([AB])\.weight|([ab]))")
_ELEMENTS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, slots=True)
class AdapterRegistry:
    """Adapters by name: `<folder>/<name>/<digest>.gguf`.

    A key, `name@digest`, stands for one content for good, so that KV and records made with it keep their meaning when the name
    gets a new file. `chosen` is the name that customers talk to; empty means none. Beside it, a `share` of conversations talks to the
    `canary`: which ones, the `salt` decides for good.
    """

    folder: Path
    chosen: str = ""
    canary: str = ""
    share: float = 0.0
    salt: str = ""

    def all(self) -> dict[str, str]:
        """Name to key, by name."""
        newest = {path.parent.name: path for path in sorted(self.folder.glob("*/*.gguf"), key=_age_s, reverse=True)}
        keys = {name: f"{name}@{path.stem}" for name, path in sorted(newest.items())}
        return {name: key for name, key in keys.items() if KEY.fullmatch(key)}

    @property
    def chosen_key(self) -> str:
        """The key of the customers' adapter; empty for none, and for one that is not there any more."""
        return self.all().get(self.chosen, "") if self.chosen else ""

    @property
    def serving_keys(self) -> tuple[str, ...]:
        """The keys that customers may talk to now; "" is the model itself."""
        return (self.chosen_key, *filter(None, [self.all().get(self.canary, "")]))

    def key_for(self, conversation_id: str) -> str:
        """The adapter of one conversation, the same in every turn."""
        if self.canary and (key := self.all().get(self.canary)):
            draw = int.from_bytes(hashlib.sha256(f"{self.salt} {conversation_id}".encode()).digest()[:8], "big")
            if draw < self.share * 2**64:
                return key
        return self.chosen_key

    def path(self, key: str) -> Path:
        """The file of a key. Raises AdapterRefused for what is no key."""
        match = KEY.fullmatch(key)
        if match is None:
            raise AdapterRefused("an adapter is named by its registry key")
        return self.folder / match[1] / f"{match[2]}.gguf"

    def add(self, name: str, source: Path, base: Path) -> str:
        """Convert `source`, a PEFT or mlx-lm folder or a GGUF adapter, for the model `base`, and keep it under `name`.

        Returns its key. The file before it stays for those who asked for it already, until the next one. Raises AdapterRefused.
        """
        if not KEY.fullmatch(f"{name}@{'0' * 12}"):
            raise AdapterRefused("an adapter's name has 1 to 40 of the characters a-z, 0-9 and -")
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".new-") as made:
            file = Path(made) / "adapter"
            try:
                convert(source, base, file)
            except (ArithmeticError, OSError, ValueError, KeyError, TypeError) as error:
                raise AdapterRefused(f"{source} cannot be read as an adapter: {error}") from error
            digest = file_digest(file)
            (self.folder / name).mkdir(exist_ok=True)
            kept = file.replace(self.folder / name / f"{digest}.gguf")
        for old in sorted({*kept.parent.glob("*.gguf")} - {kept}, key=_age_s)[1:]:
            old.unlink()
        return f"{name}@{digest}"

    def remove(self, name: str) -> str:
        """Forget an adapter; returns its key. Raises AdapterRefused when there is none of this name."""
        if (key := self.all().get(name)) is None:
            raise AdapterRefused(f"there is no adapter {name!r}")
        shutil.rmtree(self.folder / name)
        return key


def _age_s(path: Path) -> float:
    """Infinite for what has just gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def file_digest(path: Path) -> str:
    """The first 12 hex digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def convert(source: Path, base: Path, target: Path) -> None:
    """Write the adapter in `source` as GGUF to `target`, with every name and shape checked against the model `base`.

    Raises AdapterRefused for an adapter that does not fit, OSError, ValueError, KeyError or TypeError for what is none.
    """
    architecture, shapes = _describe(base)
    if source.is_file():
        (read_pairs if base.is_dir() else _check_file)(source, base)
        shutil.copyfile(source, target)
        return
    if architecture not in ARCHITECTURES:
        raise AdapterRefused(f"for the architecture {architecture} only a GGUF adapter can be used")
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    _check_config(config)
    pairs = _pairs(read_safetensors(source / ("adapter_model.safetensors" if "peft_type" in config else "adapters.safetensors")))
    _check_shapes({name: pair.shape for name, pair in pairs.items()}, shapes)
    # llama.cpp scales every product by alpha over the tensor's own rank.
    alphas = {_scale(config, pair.shape[0]) * pair.shape[0] for name, pair in pairs.items() if name.endswith("lora_a")}
    if len(alphas) > 1 or min(alphas) <= 0:
        raise AdapterRefused("the adapter's matrices are of several strengths, or of none")
    write_file(target, {**FIELDS, "general.architecture": architecture, "adapter.lora.alpha": alphas.pop()}, pairs)


def read_pairs(path: Path, base: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A [rank, in] and B [out, rank], strength included, of a GGUF adapter, by the name of the weight in `base`. Raises like `convert`."""
    alpha, tensors = _check_file(path, base), read_tensors(path)
    stems = {name[: -len(".lora_a")] for name in tensors}
    pairs = {stem: (tensors[f"{stem}.lora_a"], tensors[f"{stem}.lora_b"]) for stem in stems}
    return {stem: (a, b * np.float32(alpha / len(a) if alpha else 1)) for stem, (a, b) in pairs.items()}


def _check_file(path: Path, base: Path) -> float:
    """Is this a GGUF adapter for the model `base`? Then its alpha; 0 means that A and B are at full strength."""
    (architecture, whole), (metadata, shapes) = _describe(base), read_header(path)
    if any(metadata.get(name) != value for name, value in {**FIELDS, "general.architecture": architecture}.items()):
        raise AdapterRefused(f"{path} is no LoRA adapter for {architecture}")
    _check_shapes(shapes, whole)
    return float(str(metadata.get("adapter.lora.alpha", 0)))


def _describe(base: Path) -> tuple[str, Shapes]:
    """The architecture of a GGUF file or a model folder, and its shapes by GGUF's names."""
    if not base.is_dir():
        metadata, shapes = read_header(base)
        return str(metadata.get("general.architecture")), shapes
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] not in ARCHITECTURES:
        raise AdapterRefused(f"a model folder of the architecture {config['model_type']} takes no adapters")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    q, kv, up = ((rows, hidden) for rows in (heads * width, config["num_key_value_heads"] * width, config["intermediate_size"]))
    sizes = dict(zip(PARTS.values(), (q, kv, kv, q[::-1], up, up, up[::-1]), strict=True))
    layers = range(config["num_hidden_layers"])
    return config["model_type"], {f"blk.{i}.{part}.weight": size for i in layers for part, size in sizes.items()}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors; bfloat16 becomes float32. Raises OSError, ValueError, KeyError or TypeError for what is no such file."""
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    tensors: dict[str, Tensor] = {}
    for name, entry in json.loads(data[8:start].tobytes()).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            raw = data[start + first : start + last].view(_ELEMENTS[entry["dtype"]])
            values = (raw.astype(np.uint32) << 16).view(np.float32) if entry["dtype"] == "BF16" else raw
            tensors[name] = values.reshape(entry["shape"])
    return tensors


def _check_config(config: Mapping[str, object]) -> None:
    """Only plain LoRA is the same thing everywhere."""
    kind = str(config.get("peft_type") or config.get("fine_tune_type") or "lora").lower()
    extras = [key for key in ("use_dora", "modules_to_save", "alpha_pattern", "fan_in_fan_out") if config.get(key)]
    if kind != "lora" or extras or config.get("bias", "none") != "none":
        raise AdapterRefused(f"only plain LoRA can be used; this adapter has {', '.join(extras) or kind or 'a bias'}")


def _scale(config: Mapping[str, object], rank: int) -> float:
    """The factor of B times A: PEFT's alpha over rank (or its root), mlx-lm's scale."""
    if "peft_type" not in config:
        return float(config["lora_parameters"]["scale"])  # type: ignore[index]
    return float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)  # type: ignore[arg-type]


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under llama.cpp's names and in its orientation: A is [rank, in], B is [out, rank]."""
    pairs: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None or match[2] not in PARTS or tensor.ndim != 2 or not np.isfinite(tensor).all():
            raise AdapterRefused(f"its tensor {name} is no LoRA matrix of numbers for an attention or feed-forward projection")
        side = (match[3] or match[4]).lower()
        pairs[f"blk.{match[1]}.{PARTS[match[2]]}.weight.lora_{side}"] = tensor if match[3] else tensor.T.copy()
    return pairs


def _check_shapes(shapes: Shapes, base: Shapes) -> None:
    """Every A has its B, of the same rank, and both fit the model's own matrix [out, in]."""
    if not shapes:
        raise AdapterRefused("the adapter has no tensors")
    for stem in sorted({name.removesuffix(".lora_a").removesuffix(".lora_b") for name in shapes}):
        a, b, whole = shapes.get(f"{stem}.lora_a"), shapes.get(f"{stem}.lora_b"), base.get(stem)
        if a is None or b is None or len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != whole:
            raise AdapterRefused(f"its {stem} is {b} times {a} and the model's is {whole}: made for another model, or incomplete")
