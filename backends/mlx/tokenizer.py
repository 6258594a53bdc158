"""The tokenizer of a model folder, through the `tokenizers` package; nothing of MLX is loaded."""

import json

from tokenizers import Tokenizer as Engine

from backends.mlx.folder import ModelFolder
from backends.protocol import ModelLoadError


def _byte_of_letter() -> dict[str, int]:
    """The letters that byte-level BPE writes for the 256 bytes (GPT-2's encoder.py, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class FolderTokenizer:
    """See `Tokenizer` for the contract. Raises ModelLoadError for anything but a byte-level tokenizer.json."""

    def __init__(self, path: str) -> None:
        folder = ModelFolder(path)
        document = folder.read("tokenizer.json")
        if "ByteLevel" not in json.dumps(document.get("decoder")):
            raise ModelLoadError(f"{folder.path / 'tokenizer.json'} is not a byte-level tokenizer, the only kind kefu reads")
        added = document.get("added_tokens") or []
        self._whole: Engine = Engine.from_str(json.dumps(document))
        self._plain: Engine = Engine.from_str(json.dumps(document | {"added_tokens": []}))
        self.vocab_size = max(int(folder.config.get("vocab_size") or 0), int(self._whole.get_vocab_size()))
        self.chat_template = _template(folder)
        self.eos_token_ids = folder.eos_token_ids
        self._specials: dict[str, int] = {token["content"]: token["id"] for token in added}
        self.bos_text, self.eos_text = (_spelling(folder.tokenizer.get(name)) for name in ("bos_token", "eos_token"))
        begun = self._whole.encode("", add_special_tokens=True).tokens[:1] == [self.bos_text]
        self.adds_bos = bool(self.bos_text) and bool(folder.tokenizer.get("add_bos_token", begun))
        self._controls = {token["id"] for token in added if token["special"]}
        self._spelled: dict[int, bytes] = {token["id"]: token["content"].encode() for token in added}
        self._bytes = _byte_of_letter()

    def encode(self, text: str, *, special: bool) -> list[int]:
        return list((self._whole if special else self._plain).encode(text, add_special_tokens=False).ids)

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self._controls:
            return b""
        if token_id in self._spelled:
            return self._spelled[token_id]
        letters = self._whole.id_to_token(token_id) or ""
        return bytes(self._bytes[letter] for letter in letters if letter in self._bytes)

    def special_id(self, text: str) -> int | None:
        return self._specials.get(text)

    def special_texts(self) -> tuple[str, ...]:
        return tuple(self._specials)


def _spelling(token: object) -> str:
    return str(token.get("content", "") if isinstance(token, dict) else token or "")


def _template(folder: ModelFolder) -> str | None:
    """chat_template.jinja, or the one template of tokenizer_config.json."""
    path = folder.path / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = folder.tokenizer.get("chat_template")
    return template if isinstance(template, str) else None
