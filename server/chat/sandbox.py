"""Running a chat template that came with a model file: nothing to reach, and bounds on time, size and output."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from json import dumps
from typing import NoReturn

from jinja2 import TemplateError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SOURCE_CHARS = 128 * 1024
MAX_TEXT_CHARS = 32 * 1024 * 1024
RENDER_CPU_S = 0.5

# What chat templates in the field use. Filters that make text or lists out of a number are not here.
_FILTERS = "capitalize count default dictsort e escape first float int items last length list lower map reject rejectattr reverse safe"
_MORE_FILTERS = "select selectattr sort string title trim unique upper"
_STRING_METHODS = "capitalize count endswith find index isalnum isalpha isdigit islower isspace isupper lower lstrip partition"
_MORE_STRING_METHODS = "removeprefix removesuffix replace rfind rpartition rsplit rstrip split splitlines startswith strip title upper"
_SAFE_STRING_METHODS = frozenset(f"{_STRING_METHODS} {_MORE_STRING_METHODS}".split())
_SCALARS = (str, int, float, bool, type(None), Undefined)


class TemplateRefused(Exception):
    """The template is broken, hostile, or too slow; or it refuses these messages, and `said` is what it says then."""

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


class Renderer:
    """One compiled template. Raises TemplateRefused when the source cannot be used."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateRefused(f"it is longer than {MAX_SOURCE_CHARS} characters")
        self._sandbox = _Sandbox()
        with _refusals():
            self._template = self._sandbox.from_string(_guarded(self._sandbox.parse(source)))

    def render(self, **values: object) -> str:
        """The text. Raises TemplateRefused."""
        self._sandbox.deadline = time.thread_time() + RENDER_CPU_S
        pieces, size = [], 0
        with _refusals():
            for piece in self._template.generate(**values):
                self._sandbox.tick()
                size += len(piece)
                _bound(size)
                pieces.append(piece)
        return "".join(pieces)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's own sandbox, plus a deadline on every loop and call, and a bound on every text that grows."""

    intercepted_binops = frozenset(("+", "*", "%", "**"))

    def __init__(self) -> None:
        loop_controls = ["jinja2.ext.loopcontrols"]
        super().__init__(trim_blocks=True, lstrip_blocks=True, undefined=Undefined, finalize=_text, extensions=loop_controls)
        self.deadline = 0.0
        self.filters = {name: self.filters[name] for name in f"{_FILTERS} {_MORE_FILTERS}".split()} | {
            "tojson": self._to_json,
            "replace": self._replace,
            "join": self._join,
            "ticking": self._ticking,
        }
        self.globals = {name: self.globals[name] for name in ("range", "namespace", "dict")} | {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def tick(self) -> None:
        if time.thread_time() > self.deadline:
            raise SecurityError("it takes too long")

    def call(self, __context: Context, __obj: object, *args: object, **kwargs: object) -> object:
        self.tick()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str) and getattr(__obj, "__name__", "") == "replace":
            return self._replace(owner, *args)
        return super().call(__context, __obj, *args, **kwargs)

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        allowed = not isinstance(obj, str) or attr in _SAFE_STRING_METHODS
        return allowed and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: object) -> None:
        if super().wrap_str_format(value) is not None:
            raise SecurityError("it formats text")

    def unsafe_undefined(self, obj: object, attribute: str) -> NoReturn:
        raise SecurityError(f"it reaches for {attribute}")

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        self.tick()
        if operator == "+" and isinstance(left, Sequence) and isinstance(right, Sequence):
            _bound(len(left) + len(right))
        elif operator == "**" or (operator != "+" and not (_is_small(left) and _is_small(right))):
            raise SecurityError(f"it uses {operator} for more than small numbers")
        return super().call_binop(context, operator, left, right)

    def _replace(self, text: object, old: object, new: object, count: object = -1) -> str:
        whole, old_text, new_text = _text(text), _text(old), _text(new)
        _bound(len(whole) + whole.count(old_text) * len(new_text))
        return whole.replace(old_text, new_text, count if isinstance(count, int) else -1)

    def _join(self, parts: Iterable[object], separator: str = "", attribute: str | None = None) -> str:
        texts = [_text(part if attribute is None else self.getitem(part, attribute)) for part in self._ticking(parts)]
        _bound(sum(map(len, texts)) + len(texts) * len(separator))
        return separator.join(texts)

    def _ticking(self, items: Iterable[object]) -> Iterator[object]:
        for item in items:
            self.tick()
            yield item

    def _to_json(self, value: object, indent: int | None = None, ensure_ascii: bool = False) -> str:
        self._walk(value)
        return dumps(value, indent=None if indent is None else min(indent, 8), ensure_ascii=ensure_ascii)

    def _walk(self, value: object) -> None:
        self.tick()
        if isinstance(value, Mapping):
            value = list(value.values())
        if isinstance(value, list | tuple):
            for item in value:
                self._walk(item)


def _guarded(tree: nodes.Template) -> nodes.Template:
    """Loops tick, and `a ~ b` becomes a join whose size is bounded."""
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = nodes.Filter(loop.iter, "ticking", [], [], None, None)
    for concat in list(tree.find_all(nodes.Concat)):
        concat.nodes = [nodes.Filter(nodes.List(concat.nodes), "join", [], [], None, None)]
    return tree


@contextmanager
def _refusals() -> Iterator[None]:
    """Whatever a template can raise becomes TemplateRefused."""
    try:
        yield
    except _Said as error:
        raise TemplateRefused("it refuses these messages", said=str(error)) from None
    except SecurityError as error:
        raise TemplateRefused(str(error)) from None
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        raise TemplateRefused(f"it cannot be rendered: {type(error).__name__}") from error


class _Said(TemplateError):
    """What the template itself raised."""


def _raise_exception(message: object) -> NoReturn:
    raise _Said(_text(message))


def _strftime_now(pattern: str) -> str:
    _bound(len(pattern) * MAX_TEXT_CHARS // 100)
    return datetime.now().strftime(pattern)


def _text(value: object) -> str:
    """Output is text and numbers: writing out a list of lists of lists is how small templates make large strings."""
    if not isinstance(value, _SCALARS):
        raise SecurityError("it writes out something that is not text")
    return str(value)


def _is_small(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1_000_000_000


def _bound(size: int) -> None:
    if size > MAX_TEXT_CHARS:
        raise SecurityError(f"it makes more than {MAX_TEXT_CHARS} characters")
