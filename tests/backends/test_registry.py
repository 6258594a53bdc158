"""A path chooses its engine, and one that is not installed is named with what installs it."""

import sys
from pathlib import Path

import pytest

from backends.protocol import EngineOptions, ModelLoadError
from backends.registry import make_backend, make_tokenizer


def _forget(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.startswith("backends.mlx.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize("package", ["mlx.core", "mlx_lm.utils"])
def test_without_mlx_lm_a_folder_says_what_to_install(package: str, mlx_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _forget(monkeypatch, package)
    with pytest.raises(ModelLoadError, match=r"pip install 'mlx-lm\[cpu\]'"):
        make_backend(EngineOptions(mlx_path, "m"))


def test_without_tokenizers_too(mlx_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _forget(monkeypatch, "tokenizers")
    with pytest.raises(ModelLoadError, match=r"pip install 'mlx-lm\[cpu\]'"):
        make_tokenizer(mlx_path)


def test_a_folder_without_a_model_and_a_missing_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"it has no config\.json"):
        make_tokenizer(str(tmp_path))
    with pytest.raises(ModelLoadError, match="does not exist"):
        make_tokenizer(str(tmp_path / "missing"))
