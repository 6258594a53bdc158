"""A model folder in Hugging Face's form (MLX weights): what may be in it, read without any engine."""

import hashlib
import json
from pathlib import Path
from typing import Any

from backends.protocol import ModelLoadError

INDEX = "model.safetensors.index.json"
CODE_KEYS = ("auto_map", "model_file")
# A model is numbers and text: whoever put a program beside them wants it run.
PROGRAMS = (".py", ".pyc", ".so", ".dylib", ".dll", ".pkl", ".pickle")
HASHED = ("config.json", "tokenizer.json", "*.safetensors")


class ModelFolder:
    """A folder that was checked. Raises ModelLoadError, in one sentence, for one that cannot or must not be served."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.config = self.read("config.json")
        self.generation = self.read("generation_config.json", optional=True)
        self.tokenizer = self.read("tokenizer_config.json", optional=True)
        self._refuse_code()
        self._refuse_links()
        self._check_weights()

    def read(self, name: str, *, optional: bool = False) -> dict[str, Any]:
        """A JSON object of the folder; empty when an optional one is not there."""
        path = self.path / name
        if not path.is_file():
            if optional:
                return {}
            raise ModelLoadError(f"{self.path} is no model folder: it has no {name}")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelLoadError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(document, dict):
            raise ModelLoadError(f"{path} is not a JSON object")
        return document

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends an answer, ascending."""
        listed = [source.get("eos_token_id") for source in (self.generation, self.config)]
        return tuple(sorted({token for ids in listed for token in (ids if isinstance(ids, list) else [ids]) if isinstance(token, int)}))

    def sha256(self) -> str:
        """One digest over the files that decide what the model says."""
        digest = hashlib.sha256()
        for path in sorted({path for pattern in HASHED for path in self.path.glob(pattern)}):
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()

    def _refuse_code(self) -> None:
        for name, document in (("config.json", self.config), ("tokenizer_config.json", self.tokenizer)):
            for key in CODE_KEYS:
                if document.get(key):
                    raise ModelLoadError(f"{self.path} wants to run Python code of its own ({key} in {name}), and kefu runs none")
        for path in sorted(self.path.rglob("*")):
            if path.suffix in PROGRAMS:
                raise ModelLoadError(f"{path} is a program, which no model needs; remove it if you know where it comes from")

    def _refuse_links(self) -> None:
        home = self.path.resolve()
        for path in self.path.rglob("*"):
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise ModelLoadError(f"{path} is a link that leaves the model's folder")

    def _check_weights(self) -> None:
        present = {path.name for path in self.path.glob("model*.safetensors")}
        shards = self.read(INDEX, optional=True).get("weight_map") or {}
        if not isinstance(shards, dict):
            raise ModelLoadError(f"{self.path / INDEX} has no weight map")
        others = sorted({str(name) for name in shards.values() if not str(name).endswith(".safetensors")})
        if others or not present:
            found = others or sorted(p.name for p in self.path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".npz", ".ckpt", ".gguf"))
            raise ModelLoadError(
                f"{self.path} has no safetensors weights{f' but {found[0]}' if found else ''}; only model*.safetensors is read"
            )
        missing = sorted(set(shards.values()) - present)
        if missing:
            raise ModelLoadError(
                f"{self.path} is not complete: {missing[0]} is missing ({len(missing)} of {len(set(shards.values()))} shards)"
            )
