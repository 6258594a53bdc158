"""Adapters on disk: both trainers' folders become one GGUF file, and what does not fit is refused in one clause."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from backends.adapter import AdapterRegistry, read_pairs
from backends.gguf_file import read_header
from backends.protocol import AdapterRefused
from tests.backends.lora import ALPHA, RANK, Matrices, random_matrices, save_file, write_mlx, write_peft


@pytest.fixture
def registry(tmp_path: Path) -> AdapterRegistry:
    return AdapterRegistry(tmp_path / "adapters")


def test_peft_and_mlx_folders_of_one_adapter_become_the_same_file(registry: AdapterRegistry, tmp_path: Path, model_path: str) -> None:
    matrices = random_matrices(1)
    keys = [
        registry.add("tone", folder, Path(model_path))
        for folder in (write_peft(tmp_path / "p", matrices), write_mlx(tmp_path / "m", matrices))
    ]
    assert keys[0] == keys[1] == registry.all()["tone"]
    newer = [registry.add("tone", write_mlx(tmp_path / f"{seed}", random_matrices(seed)), Path(model_path)) for seed in (2, 3)]
    assert registry.all() == {"tone": newer[1]}
    assert {registry.path(key) for key in newer} == set((registry.folder / "tone").iterdir()), "this one and the one before it"


def test_the_written_file_is_what_other_readers_read(registry: AdapterRegistry, tmp_path: Path, model_path: str) -> None:
    matrices = random_matrices(1)
    key = registry.add("tone", write_peft(tmp_path / "p", matrices), Path(model_path))
    reader = gguf.GGUFReader(registry.path(key))
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.lora.alpha"].contents() == ALPHA
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    a, b = matrices["layers.1.self_attn.k_proj"]
    assert np.array_equal(tensors["blk.1.attn_k.weight.lora_a"], a)
    assert np.array_equal(tensors["blk.1.attn_k.weight.lora_b"], b)
    metadata, ours = read_header(Path(model_path))
    theirs = gguf.GGUFReader(model_path)
    assert metadata["general.architecture"] == "qwen2"
    assert ours == {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in theirs.tensors}
    assert registry.add("again", registry.path(key), Path(model_path)).endswith(key.partition("@")[2])


def test_a_model_folder_is_checked_like_the_file_of_the_same_model(
    registry: AdapterRegistry, tmp_path: Path, model_path: str, mlx_path: str
) -> None:
    folder = write_peft(tmp_path / "p", random_matrices(1))
    key = registry.add("tone", folder, Path(model_path))
    assert registry.add("tone", folder, Path(mlx_path)) == registry.add("tone", registry.path(key), Path(mlx_path)) == key
    pairs = read_pairs(registry.path(key), Path(mlx_path))
    a, b = random_matrices(1)["layers.1.self_attn.k_proj"]
    assert np.array_equal(pairs["blk.1.attn_k.weight"][0], a)
    assert np.array_equal(pairs["blk.1.attn_k.weight"][1], b * (ALPHA / RANK))
    wrong = write_peft(tmp_path / "w", _cut(random_matrices(1), "layers.0.mlp.down_proj"))
    with pytest.raises(AdapterRefused, match="made for another model"):
        registry.add("tone", wrong, Path(mlx_path))
    quantized = gguf.GGUFWriter(str(tmp_path / "q.gguf"), "qwen2")
    quantized.add_string("general.type", "adapter")
    quantized.add_string("adapter.type", "lora")
    for side, shape in (("a", (32, 256)), ("b", (256, 32))):
        data = gguf.quants.quantize(np.zeros(shape, np.float32), gguf.GGMLQuantizationType.Q8_0)
        quantized.add_tensor(f"blk.0.attn_q.weight.lora_{side}", data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for write in (quantized.write_header_to_file, quantized.write_kv_data_to_file, quantized.write_tensors_to_file, quantized.close):
        write()
    registry.add("quantized", tmp_path / "q.gguf", Path(model_path))
    with pytest.raises(AdapterRefused, match="neither float32 nor float16"):
        registry.add("tone", tmp_path / "q.gguf", Path(mlx_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for source in (folder, registry.path(key)):
        with pytest.raises(AdapterRefused, match="llama takes no adapters"):
            registry.add("tone", source, tmp_path)
    assert registry.all()["tone"] == key


def test_ranks_may_differ_where_alpha_over_rank_says_it_all(registry: AdapterRegistry, tmp_path: Path, model_path: str) -> None:
    matrices = random_matrices(1)
    a, b = matrices["layers.0.mlp.up_proj"]
    matrices["layers.0.mlp.up_proj"] = (np.vstack([a, a]), np.hstack([b, b]))
    reader = gguf.GGUFReader(registry.path(registry.add("a", write_peft(tmp_path / "p", matrices), Path(model_path))))
    assert reader.fields["adapter.lora.alpha"].contents() == ALPHA
    with pytest.raises(AdapterRefused, match="several strengths"):
        registry.add("b", write_peft(tmp_path / "p", matrices, use_rslora=True), Path(model_path))
    whole = write_peft(tmp_path / "p", random_matrices(1), use_rslora=True)
    reader = gguf.GGUFReader(registry.path(registry.add("b", whole, Path(model_path))))
    assert reader.fields["adapter.lora.alpha"].contents() == ALPHA * np.sqrt(RANK)


def _cut(matrices: Matrices, name: str) -> Matrices:
    a, b = matrices[name]
    return {**matrices, name: (a[:, :-1], b)}


@pytest.mark.parametrize(
    ("matrices", "config", "said"),
    [
        (_cut(random_matrices(1), "layers.0.mlp.up_proj"), {}, "made for another model"),
        ({"layers.99.mlp.up_proj": random_matrices(1)["layers.0.mlp.up_proj"]}, {}, "blk.99.ffn_up"),
        ({"layers.0.mlp.router": random_matrices(1)["layers.0.mlp.up_proj"]}, {}, "mlp.router"),
        ({"layers.0.mlp.up_proj": (np.full((RANK, 9), np.nan, np.float32), np.zeros((9, RANK), np.float32))}, {}, "of numbers"),
        (random_matrices(1), {"use_dora": True}, "use_dora"),
        (random_matrices(1), {"peft_type": "IA3"}, "ia3"),
        (random_matrices(1), {"lora_alpha": 0}, "or of none"),
        ({}, {}, "no tensors"),
    ],
)
def test_what_does_not_fit_is_refused(
    matrices: Matrices, config: dict[str, object], said: str, registry: AdapterRegistry, tmp_path: Path, model_path: str
) -> None:
    with pytest.raises(AdapterRefused, match=said):
        registry.add("a", write_peft(tmp_path / "p", matrices, **config), Path(model_path))
    assert registry.all() == {}


def test_half_a_pair_and_broken_files_are_refused(registry: AdapterRegistry, tmp_path: Path, model_path: str) -> None:
    base = Path(model_path)
    with pytest.raises(AdapterRefused, match="name"):
        registry.add("../up", tmp_path, base)
    with pytest.raises(AdapterRefused, match=r"adapter_config\.json"):
        registry.add("a", tmp_path, base)
    folder = write_peft(tmp_path / "p", random_matrices(1))
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for broken in (b"", whole[:50], whole[:-100], b"\xff" * 100):
        weights.write_bytes(broken)
        with pytest.raises(AdapterRefused):
            registry.add("a", folder, base)
    save_file({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": random_matrices(1)["layers.0.mlp.up_proj"][0]}, weights)
    with pytest.raises(AdapterRefused, match="incomplete"):
        registry.add("a", folder, base)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    weights.write_bytes(whole)
    with pytest.raises(AdapterRefused, match="lora_alpha"):
        registry.add("a", folder, base)
    for text in (b"GGUF", b"GGUF\3\0\0\0" + b"\xff" * 16, b"hello"):
        weights.write_bytes(text)
        with pytest.raises(AdapterRefused):
            registry.add("a", weights, base)
    with pytest.raises(AdapterRefused, match="no LoRA adapter"):
        registry.add("a", base, base)


def test_the_registry_lists_and_forgets(registry: AdapterRegistry, tmp_path: Path, model_path: str) -> None:
    assert registry.all() == {}
    key = registry.add("tone", write_peft(tmp_path / "p", random_matrices(1)), Path(model_path))
    assert AdapterRegistry(registry.folder, "tone").chosen_key == key
    registry.remove("tone")
    assert registry.all() == {}
    assert AdapterRegistry(registry.folder, "tone").chosen_key == ""
    for call in (lambda: registry.remove("tone"), lambda: registry.path("../../etc@0")):
        with pytest.raises(AdapterRefused):
            call()
