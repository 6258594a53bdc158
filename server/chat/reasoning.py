"""Thought and answer, told apart.

The rule: a model thinks at most once, before it answers. The first `</think>` ends the thought for good; every later tag,
opening or closing, is dropped, and the text around it stays in the channel where it stands. Newlines between the thought and
the answer belong to neither, nor does white space before a thought that the model opens itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal, Protocol

from server.chat.detokenizer import Detokenizer, Vocabulary
from server.chat.stops import StopFinder

OPEN, CLOSE = "<think>", "</think>"
Channel = Literal["reasoning", "content"]
Piece = tuple[Channel, str]


class ThoughtState(Enum):
    """What the prompt leaves behind: UNDECIDED when the model itself may open a thought."""

    UNDECIDED = auto()
    THINKING = auto()
    ANSWERING = auto()


@dataclass(frozen=True, slots=True)
class ThinkTags:
    """The single tokens of the two tags."""

    open_id: int
    close_id: int


class Splitter(Protocol):
    """One answer's tokens, in order, to pieces of text by channel."""

    num_reasoning_tokens: int

    def push(self, token_id: int) -> Sequence[Piece]:
        """What is certain now. A tag that opens or closes the thought counts as reasoning."""

    def flush(self) -> Sequence[Piece]:
        """Text that was held back, when nothing more will come."""


class _Rule:
    """Where in the answer we are."""

    def __init__(self, state: ThoughtState) -> None:
        self.state = state
        self.num_reasoning_tokens = 0
        self._is_blank = True

    def _piece(self, text: str) -> Piece:
        if self.state is ThoughtState.THINKING:
            return "reasoning", text
        if self._is_blank and text:
            text = text.lstrip() if self.state is ThoughtState.UNDECIDED else text.lstrip("\n")
            if text:
                self.state, self._is_blank = ThoughtState.ANSWERING, False
        return "content", text

    def _turn(self, tag: str) -> None:
        """Follow a tag; one that means nothing here is dropped."""
        if tag == OPEN and self.state is ThoughtState.UNDECIDED:
            self.state = ThoughtState.THINKING
        elif tag == CLOSE and self.state is ThoughtState.THINKING:
            self.state = ThoughtState.ANSWERING


class TokenSplitter(_Rule):
    """For models whose tags are single tokens."""

    def __init__(self, vocabulary: Vocabulary, tags: ThinkTags, state: ThoughtState) -> None:
        super().__init__(state)
        self._vocabulary = vocabulary
        self._tags = {tags.open_id: OPEN, tags.close_id: CLOSE}
        self._detokenizer = Detokenizer(vocabulary)

    def push(self, token_id: int) -> Sequence[Piece]:
        if tag := self._tags.get(token_id):
            was_thinking = self.state is ThoughtState.THINKING
            self._turn(tag)
            self.num_reasoning_tokens += was_thinking or self.state is ThoughtState.THINKING
            self._detokenizer = Detokenizer(self._vocabulary)
            return ()
        self.num_reasoning_tokens += self.state is ThoughtState.THINKING
        return (self._piece(self._detokenizer.push(token_id)),)

    def flush(self) -> Sequence[Piece]:
        return ()


class TextSplitter(_Rule):
    """For models whose vocabulary spells the tags out of several tokens: the same rule, on text. Without a vocabulary, only `split`."""

    def __init__(self, vocabulary: Vocabulary | None, state: ThoughtState) -> None:
        super().__init__(state)
        self._detokenizer = Detokenizer(vocabulary) if vocabulary else None
        self._finder = StopFinder((OPEN, CLOSE))

    def push(self, token_id: int) -> Sequence[Piece]:
        self.num_reasoning_tokens += self.state is ThoughtState.THINKING
        return self.split(self._detokenizer.push(token_id)) if self._detokenizer else ()

    def split(self, text: str) -> Sequence[Piece]:
        """What is certain now that this text has come."""
        pieces = [self._piece(self._finder.push(text))]
        while self._finder.found:
            tag, rest = self._finder.found, self._finder.rest
            self._finder = StopFinder((OPEN, CLOSE))
            self._turn(tag)
            pieces.append(self._piece(self._finder.push(rest)))
        return pieces

    def flush(self) -> Sequence[Piece]:
        return (self._piece(self._finder.flush()),)


class PlainSplitter:
    """For text that has no thoughts: everything is content."""

    num_reasoning_tokens = 0

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._detokenizer = Detokenizer(vocabulary)

    def push(self, token_id: int) -> Sequence[Piece]:
        return (("content", self._detokenizer.push(token_id)),)

    def flush(self) -> Sequence[Piece]:
        return ()
