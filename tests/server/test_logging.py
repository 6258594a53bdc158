"""A log line is one line of ASCII, and holds no visitor's words."""

import json
import logging
import sys

from hypothesis import given
from hypothesis import strategies as st

from server.logging import JsonLines, log_fields


def _line(message: str, exc_info: bool = False, **fields: object) -> str:
    record = logging.LogRecord("kefu", logging.INFO, "f.py", 1, message, (), sys.exc_info() if exc_info else None)
    record.__dict__.update(log_fields(**fields))
    return JsonLines().format(record)


@given(st.text(), st.text())
def test_any_text_is_escaped_and_comes_back(message: str, value: str) -> None:
    line = _line(message.replace("%", ""), route=value)
    assert all(" " <= char < "\x7f" for char in line)
    assert json.loads(line)["route"] == value


def test_an_exception_is_its_type_and_place_without_its_text() -> None:
    try:
        raise ValueError("secret")
    except ValueError:
        line = _line("failed", exc_info=True)
    assert "secret" not in line
    assert json.loads(line)["exception"] == "ValueError"
    assert "test_logging.py" in json.loads(line)["raised_at"][-1]
