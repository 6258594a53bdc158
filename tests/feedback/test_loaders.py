"""The trainers' own loaders read an export as it lies there. Runs where they are installed; CI has no need of them."""

import hashlib
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from feedback.rewards import kefu_reward
from tests.feedback.shopper import Talk
from tests.feedback.test_export import SHOP, Words, a_shop, exported

TOKENIZER = Path(__file__).parents[2] / "backends" / "mini" / "weights"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with every file."""
    folder = tmp_path_factory.mktemp("export")
    talks = a_shop(40)
    for number, talk in enumerate(talks):
        other = hashlib.sha256(talk.name.encode()).hexdigest()
        talk.person(f"您的退款 {other} 已经退回。")
        talk.signal(talk.answers("好的。", to=talk.asks(f"款号 {other} 呢?")), "thumb", 1)
        short = Talk(f"vis_s{number}", f"s{number}")
        short.asks(f"几天到账? {other}")
        short.signal(short.answers(f"3-5 个工作日到账 [1],款号 {other}。"), "thumb", 1)
        talks = [*talks, short]
    exported(talks, folder, shop=type(SHOP)(SHOP.system, SHOP.never, Words()))
    (snapshot,) = (path for path in folder.iterdir() if not path.name.startswith("."))
    return snapshot


def tokenizer() -> object:
    transformers = pytest.importorskip("transformers")
    folders = [path.parent for path in TOKENIZER.rglob("tokenizer.json")]
    return transformers.AutoTokenizer.from_pretrained(str(folders[0]))


@pytest.mark.parametrize("kind", ["dpo", "kto", "rm", "sft", "grpo"])
def test_trl(folder: Path, kind: str, tmp_path: Path) -> None:
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl.data_utils")
    loaded = datasets.load_dataset(str(folder / "trl" / kind), cache_dir=str(tmp_path))
    assert set(loaded) >= {"train", "validation"} and len(loaded["train"]) > len(loaded["validation"]) > 0
    row = loaded["train"][0]
    assert trl.is_conversational(row)
    if kind in ("dpo", "kto"):
        said = trl.maybe_apply_chat_template({key: row[key] for key in row if key not in ("label", "weight")}, tokenizer())
        assert all(isinstance(text, str) and text for text in said.values())
    if kind == "dpo":
        unpaired = trl.maybe_unpair_preference_dataset(loaded["train"])
        assert len(unpaired) == 2 * len(loaded["train"]) and set(unpaired["label"]) == {True, False}
    if kind == "grpo":
        columns = {name: [row[name]] for name in row if name != "prompt"}
        assert kefu_reward([row["prompt"]], [[{"role": "assistant", "content": row["answer"]}]], **columns)[0] > 0.9


def test_trl_reads_rendered_rows(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(folder / "trl_rendered" / "dpo"), cache_dir=str(tmp_path))
    assert all(isinstance(loaded["train"][0][key], str) for key in ("prompt", "chosen", "rejected"))


@pytest.mark.parametrize("mode", ["dpo", "orpo", "grpo"])
def test_mlx_lm_lora(folder: Path, mode: str) -> None:
    try:
        loaders = import_module("mlx_lm_lora.trainer.datasets")
    except ImportError:
        pytest.skip("mlx-lm-lora is not installed")
    load: Callable[..., tuple[list[dict[str, object]], ...]] = loaders.load_local_dataset
    words = tokenizer()
    train, *_ = load(folder / "mlx_lm_lora" / mode, words, SimpleNamespace(train_mode=mode))
    assert len(train) > 0
    decoded = words.decode(train[0][0] if mode == "grpo" else train[0]["chosen"])  # type: ignore[attr-defined]
    first = json.loads((folder / "mlx_lm_lora" / mode / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["prompt"] in decoded and SHOP.system(None) in decoded  # type: ignore[arg-type]


def test_verl_reads_the_json(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("json", data_files=str(folder / "verl" / "train.json"), cache_dir=str(tmp_path))["train"]
    assert set(loaded[0]) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}


def test_llamafactory_converts_every_row(folder: Path) -> None:
    """Through LLaMA-Factory's own converter where it is installed, else by its rules: turns alternate, and who ends them."""
    info = json.loads((folder / "llamafactory" / "dataset_info.json").read_text(encoding="utf-8"))
    assert set(info) == {"kefu_dpo", "kefu_kto", "kefu_sft"}
    for name, told in info.items():
        rows = json.loads((folder / "llamafactory" / told["file_name"]).read_text(encoding="utf-8"))
        for row in rows:
            assert set(told["columns"].values()) <= set(row)
            speakers = [turn["from"] for turn in row["conversations"]]
            assert speakers == [("human", "gpt")[place % 2] for place in range(len(speakers))]
            assert speakers[-1] == ("human" if name == "kefu_dpo" else "gpt")
