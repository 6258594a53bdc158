"""Grammars: what an answer must look like, as the tokens that may come next. The only importer of llguidance."""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from backends.protocol import Tokenizer

# A grammar this long compiles within a second; what the limits stop later, in the middle of an answer, ends the answer.
MAX_GRAMMAR_CHARS = 64 * 1024
LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)


class Grammars:
    """Compiles grammars for one model's vocabulary, on a thread of its own: neither a step nor a request waits for that.

    A grammar is written in llguidance's dialect of Lark (docs/syntax.md there). The vocabulary is read when it is first needed.
    """

    def __init__(self, read_tokenizer: Callable[[], Tokenizer]) -> None:
        self._read_tokenizer = read_tokenizer
        self._thread = ThreadPoolExecutor(1, "grammar")

    async def check(self, grammar: str) -> str:
        """Why this grammar cannot be used, in llguidance's words; empty when it can."""
        if len(grammar) > MAX_GRAMMAR_CHARS:
            return f"it is longer than {MAX_GRAMMAR_CHARS} characters"
        try:
            matcher = await asyncio.wrap_future(self._thread.submit(self._compile, grammar))
        except (ValueError, LookupError) as error:
            return f"this vocabulary cannot be used: {error}"
        return matcher.get_error() or ("nothing can be written" if matcher.is_stopped() else "")

    def constrain(self, grammar: str) -> "GrammarConstraint":
        """What one sequence may write. Returns at once; the grammar must be one that `check` has nothing against."""
        return GrammarConstraint(self._thread.submit(self._compile, grammar), self)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self._read_tokenizer()

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        words = TokenizerWrapper(_Words(self.tokenizer))
        return LLTokenizer(words, self.tokenizer.vocab_size, list(self.tokenizer.eos_token_ids), LLTokenizer.json_slices())

    def _compile(self, grammar: str) -> LLMatcher:
        matcher = LLMatcher(self._vocabulary, LLMatcher.grammar_from_lark(grammar), log_level=0, limits=LIMITS)
        matcher.compute_bitmask()  # what matches strings is built with the first mask
        return matcher


def schema_fault(schema: dict[str, object]) -> str:
    """Why values cannot be held to this JSON Schema, in llguidance's words; empty when they can."""
    return LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(json.dumps(schema)), None) or ""


def fits(schema: dict[str, object], value: object) -> bool:
    """Whether a JSON value, its names in the schema's order, is what this JSON Schema describes. What cannot be checked is left out."""
    spelling = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True}
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema | {"x-guidance": spelling}))
    matcher = LLMatcher(_bytes(), grammar, log_level=0, limits=LIMITS)
    text = list(json.dumps(value, ensure_ascii=False).encode())
    return not matcher.is_error() and matcher.validate_tokens(text) == len(text) and matcher.consume_tokens(text) and matcher.is_accepting()


@cache
def _bytes() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()), 257, [_Bytes.eos_token_id])


class _Bytes:
    """A vocabulary of bytes and an end."""

    bos_token_id, eos_token_id = None, 256
    tokens: ClassVar = [*(bytes([byte]) for byte in range(256)), b""]
    special_token_ids: ClassVar = [256]

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


class GrammarConstraint:
    """One sequence's way through its grammar. See `Constraint`."""

    def __init__(self, compiled: Future[LLMatcher], grammars: Grammars) -> None:
        self._compiled = compiled
        self._grammars = grammars
        self._num_taken = 0
        self.is_broken = False

    @property
    def is_ready(self) -> bool:
        return self._compiled.done()

    def allowed(self, answer: list[int]) -> npt.NDArray[np.bool_]:
        matcher, tokenizer = self._compiled.result(), self._grammars.tokenizer
        matcher.consume_tokens(answer[self._num_taken :])
        self._num_taken = len(answer)
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: tokenizer.vocab_size].view(np.bool_)
        if matcher.is_error() or not allowed.any():
            self.is_broken = True
            allowed[:] = False
            allowed[list(tokenizer.eos_token_ids)] = True
        return allowed


class _Words:
    """A vocabulary as llguidance wants to see it."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        self.special_token_ids: list[int] = []
        self.eos_token_id = tokenizer.eos_token_ids[0]
        for text in tokenizer.special_texts():
            token_id = tokenizer.special_id(text)
            # Some vocabularies count ordinary text, such as runs of blanks, among their special tokens.
            if token_id is not None and (not self.tokens[token_id] or text[:1] + text[-1:] == "<>"):
                self.tokens[token_id] = text.encode()
                self.special_token_ids.append(token_id)

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, special=False)
