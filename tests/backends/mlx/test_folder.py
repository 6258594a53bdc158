"""What a model folder may hold, and its tokenizer beside llama.cpp's."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.llamacpp.tokenizer import LlamaTokenizer
from backends.mlx.folder import ModelFolder
from backends.mlx.tokenizer import FolderTokenizer
from backends.protocol import ModelLoadError
from tests.conftest import WEIGHTS

TEXTS = [
    "",
    "hello",
    "Where is my order 12345?",
    "你好，退货怎么办？",
    "tab\tand\r\nlines\n\n\n  end ",
    "naïve café 🙂👩‍👩‍👧",
    "it's we'll\u00a0x",
]
FRAMED = "<|im_start|>user\nhi<|im_end|>\n<think>\n</think>\n\n"


@pytest.fixture(scope="module")
def pair() -> tuple[LlamaTokenizer, FolderTokenizer]:
    return LlamaTokenizer(str(WEIGHTS / "kefu-mini.gguf")), FolderTokenizer(str(WEIGHTS / "mlx"))


@pytest.fixture
def folder(tmp_path: Path, mlx_path: str) -> Path:
    shutil.copytree(mlx_path, tmp_path / "model")
    return tmp_path / "model"


def test_both_tokenizers_know_the_same_words(pair: tuple[LlamaTokenizer, FolderTokenizer]) -> None:
    ours, theirs = pair[1], pair[0]
    assert ours.vocab_size == theirs.vocab_size
    assert ours.eos_token_ids == theirs.eos_token_ids
    assert ours.chat_template == theirs.chat_template
    assert (ours.bos_text, ours.eos_text, ours.adds_bos) == (theirs.bos_text, theirs.eos_text, theirs.adds_bos)
    assert set(ours.special_texts()) == set(theirs.special_texts())
    assert {text: ours.special_id(text) for text in ours.special_texts()} == {
        text: theirs.special_id(text) for text in ours.special_texts()
    }
    assert [ours.token_bytes(t) for t in range(ours.vocab_size)] == [theirs.token_bytes(t) for t in range(ours.vocab_size)]
    assert ours.special_id("hello") is None


@pytest.mark.parametrize("text", [*TEXTS, FRAMED])
def test_both_tokenizers_cut_text_alike(pair: tuple[LlamaTokenizer, FolderTokenizer], text: str) -> None:
    assert pair[1].encode(text, special=True) == pair[0].encode(text, special=True)
    if text != FRAMED:
        assert pair[1].encode(text, special=False) == pair[0].encode(text, special=False)


@given(text=st.text(max_size=40))
def test_text_comes_back_and_a_spelled_out_tag_stays_text(pair: tuple[LlamaTokenizer, FolderTokenizer], text: str) -> None:
    tokenizer = pair[1]
    ids = tokenizer.encode(text + "</think>", special=False)
    assert not {tokenizer.special_id(special) for special in tokenizer.special_texts()} & set(ids)
    if unicodedata.is_normalized("NFC", text):
        assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text + "</think>"


def _edit(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _as_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _index(folder: Path, *shards: str) -> None:
    weight_map = {f"layer.{i}": shard for i, shard in enumerate(shards)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _link(folder: Path) -> None:
    (folder.parent / "elsewhere.safetensors").write_bytes(b"")
    (folder / "model-2.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "it has no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
    "model code": (lambda f: _edit(f, "config.json", model_file="model.py"), "code of its own"),
    "auto_map": (lambda f: _edit(f, "config.json", auto_map={"AutoModel": "modeling.Model"}), "auto_map in config.json"),
    "tokenizer code": (lambda f: _edit(f, "tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T", None]}), "auto_map in tokenizer"),
    "a program": (lambda f: (f / "modeling_qwen.py").write_text("print()"), "modeling_qwen.py is a program"),
    "a pickle deep inside": (lambda f: [(f / "extra").mkdir(), (f / "extra" / "a.pkl").write_bytes(b"")], "a.pkl is a program"),
    "a link out": (_link, "leaves the model's folder"),
    "pickles": (_as_bin, "no safetensors weights but pytorch_model.bin"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no safetensors weights;"),
    "a missing shard": (lambda f: _index(f, "model.safetensors", "model-2.safetensors"), "model-2.safetensors is missing (1 of 2 shards)"),
    "a pickled shard": (lambda f: _index(f, "model.safetensors", "model-2.bin"), "but model-2.bin"),
}


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_folder_that_must_not_be_served_is_refused_in_one_sentence(folder: Path, spoil: str) -> None:
    ModelFolder(str(folder))
    change, said = SPOILED[spoil]
    change(folder)
    with pytest.raises(ModelLoadError) as caught:
        ModelFolder(str(folder))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_kind_of_tokenizer_is_refused_and_a_template_file_wins(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("hello")
    assert FolderTokenizer(str(folder)).chat_template == "hello"
    _edit(folder, "tokenizer.json", decoder={"type": "Metaspace"})
    with pytest.raises(ModelLoadError, match="not a byte-level tokenizer"):
        FolderTokenizer(str(folder))


def test_the_first_token_is_the_folders_own_affair(folder: Path) -> None:
    assert FolderTokenizer(str(folder)).bos_text == ""
    _edit(folder, "tokenizer_config.json", bos_token={"content": "<|endoftext|>"}, add_bos_token=True)
    named = FolderTokenizer(str(folder))
    assert (named.bos_text, named.adds_bos) == ("<|endoftext|>", True)


def test_the_digest_follows_the_files(folder: Path) -> None:
    before = ModelFolder(str(folder)).sha256()
    assert ModelFolder(str(folder)).sha256() == before
    _edit(folder, "config.json", rope_theta=5.0)
    assert ModelFolder(str(folder)).sha256() != before
