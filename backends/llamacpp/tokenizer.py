"""The tokenizer of a GGUF file, through llama.cpp, with the vocabulary loaded and nothing else."""

import ctypes
from pathlib import Path

import llama_cpp as lib

from backends.llamacpp.model import check_gguf, log_sink
from backends.protocol import ModelLoadError

MAX_TOKEN_BYTES = 512


class LlamaTokenizer:
    """See `Tokenizer` for the contract. Loading takes a moment even for a 20 GB file: weights are not read."""

    def __init__(self, path: str) -> None:
        check_gguf(Path(path))
        log = log_sink()
        params = lib.llama_model_default_params()
        params.vocab_only = True
        self._model = lib.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise ModelLoadError(f"the vocabulary of {path} could not be read: {log.why}")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.vocab_size = int(lib.llama_vocab_n_tokens(self._vocab))
        template = lib.llama_model_chat_template(self._model, None)
        self.chat_template: str | None = template.decode("utf-8") if template else None
        self.eos_token_ids = tuple(t for t in range(self.vocab_size) if lib.llama_vocab_is_eog(self._vocab, t))
        self._specials = self._find_specials()
        self.bos_text = self._special_text(lib.llama_vocab_bos(self._vocab))
        self.eos_text = self._special_text(lib.llama_vocab_eos(self._vocab))
        self.adds_bos = bool(self.bos_text) and lib.llama_vocab_get_add_bos(self._vocab)
        self._pieces: list[bytes | None] = [None] * self.vocab_size

    def _find_specials(self) -> dict[str, int]:
        special = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        ids = [t for t in range(self.vocab_size) if lib.llama_vocab_get_attr(self._vocab, t) & special]
        return {lib.llama_vocab_get_text(self._vocab, t).decode("utf-8", "replace"): t for t in ids}

    def _special_text(self, token_id: int) -> str:
        """Its spelling; empty for -1 and for the ordinary word that llama.cpp assumes where a file names no such token."""
        return next((text for text, special_id in self._specials.items() if special_id == token_id), "")

    def encode(self, text: str, *, special: bool) -> list[int]:
        data = text.encode("utf-8")
        capacity = len(data) + 1
        tokens = (lib.llama_token * capacity)()
        count = lib.llama_tokenize(self._vocab, data, len(data), tokens, capacity, False, special)
        if count < 0:
            tokens = (lib.llama_token * -count)()
            count = lib.llama_tokenize(self._vocab, data, len(data), tokens, -count, False, special)
        return list(tokens[:count])

    def token_bytes(self, token_id: int) -> bytes:
        piece = self._pieces[token_id]
        if piece is None:
            piece = self._pieces[token_id] = self._read_piece(token_id)
        return piece

    def _read_piece(self, token_id: int) -> bytes:
        if lib.llama_vocab_is_control(self._vocab, token_id):
            return b""
        buffer = ctypes.create_string_buffer(MAX_TOKEN_BYTES)
        length = lib.llama_token_to_piece(self._vocab, token_id, buffer, MAX_TOKEN_BYTES, 0, True)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = lib.llama_token_to_piece(self._vocab, token_id, buffer, -length, 0, True)
        return buffer.raw[:length]

    def special_id(self, text: str) -> int | None:
        return self._specials.get(text)

    def special_texts(self) -> tuple[str, ...]:
        return tuple(self._specials)
