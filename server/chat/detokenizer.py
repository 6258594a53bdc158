"""Token ids to text, a token at a time, never a broken character."""

import codecs

from backends.protocol import Tokenizer
from server.chat.tools import CALL_CLOSE, CALL_OPEN


class Vocabulary:
    """What each token spells, read once and shared by all streams.

    `text_of(id)` is None for a token that holds part of a character: only a Detokenizer can tell what it becomes. The tags of a call
    are spelled out, also where they are control tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.size = tokenizer.vocab_size
        self._tokenizer = tokenizer
        self._tags = {tokenizer.special_id(tag): tag.encode() for tag in (CALL_OPEN, CALL_CLOSE)}
        self._texts: dict[int, str | None] = {}

    def bytes_of(self, token_id: int) -> bytes:
        return self._tags.get(token_id) or self._tokenizer.token_bytes(token_id)

    def text_of(self, token_id: int) -> str | None:
        try:
            return self._texts[token_id]
        except KeyError:
            text = self._texts[token_id] = _whole(self.bytes_of(token_id))
            return text


class Detokenizer:
    """One stream of tokens. The text of a character that is not complete waits; an invalid byte becomes U+FFFD, once.

    What still waits at the end is dropped: half a character says nothing.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_waiting = False

    def push(self, token_id: int) -> str:
        """The text that is certain now that this token has come."""
        if not self._is_waiting:
            text = self._vocabulary.text_of(token_id)
            if text is not None:
                return text
        text = self._decoder.decode(self._vocabulary.bytes_of(token_id))
        self._is_waiting = bool(self._decoder.getstate()[0])
        return text


def _whole(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None
