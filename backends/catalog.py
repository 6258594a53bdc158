"""The catalogue: names of models, where each build of them lives, how large they are and how their cards want them sampled."""

import functools
from pathlib import Path
from typing import Literal

import msgspec

from backends.sequence import SamplingParams

Format = Literal["gguf", "mlx"]


class UnknownModel(Exception):
    """No entry has this name; the message lists those there are."""


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One build of a model in a Hugging Face repository; the defaults are an MLX folder's.

    `files` are names or patterns, `bits` is per weight, `revision` a commit where content is pinned. `size` in bytes and `sha256`
    belong to the one file of a GGUF build; without a `sha256` the first download is trusted and recorded.
    """

    repo: str
    files: tuple[str, ...] = ("*.json", "*.safetensors", "*.jinja", "merges.txt")
    bits: float = 4.5
    revision: str = "main"
    size: int = 0
    sha256: str = ""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model. `shape` is (layers, KV heads, head dimension); `billions` counts its parameters.

    `asks` is what an embedding model wants to read before a question that is looked for among passages.
    """

    about: str
    billions: float
    shape: tuple[int, int, int]
    gguf: Source
    mlx: Source
    name: str = ""
    use: Literal["chat", "draft", "embedding"] = "chat"
    asks: str = ""
    context_length: int = 32768
    temperature: float = 0.6
    top_k: int = 20
    top_p: float = 0.95

    @property
    def sampling(self) -> SamplingParams:
        """What the model's card asks for; `max_tokens` 0 is what the context has left."""
        return SamplingParams(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, max_tokens=0)

    def source(self, kind: Format) -> Source:
        return self.mlx if kind == "mlx" else self.gguf

    def kv_bytes_per_token(self, bytes_per_value: float = 2.0) -> int:
        """Keys and values of every layer for one token: 2 x layers x KV heads x head dimension x bytes per value."""
        layers, heads, width = self.shape
        return int(2 * layers * heads * width * bytes_per_value)

    def weight_bytes(self, kind: Format) -> int:
        """The pinned file's size, or parameters x bits / 8 until a download tells."""
        source = self.source(kind)
        return source.size or int(self.billions * 1e9 * source.bits / 8)


@functools.cache
def catalog() -> dict[str, Entry]:
    """All entries by name, the best first."""
    entries = msgspec.toml.decode(Path(__file__).with_suffix(".toml").read_bytes(), type=dict[str, Entry])
    return {name: msgspec.structs.replace(entry, name=name) for name, entry in entries.items()}


def find(name: str) -> Entry:
    """The entry of this name, whatever its case. Raises UnknownModel."""
    if (entry := catalog().get(name.lower())) is None:
        raise UnknownModel(f"there is no model {name!r} in the catalogue; there are {', '.join(catalog())}")
    return entry
