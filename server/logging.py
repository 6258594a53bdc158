"""Logs as JSON lines: no message content, no control characters, whatever was sent."""

import json
import logging
import sys
from datetime import UTC, datetime
from traceback import extract_tb

FIELDS = "fields"


class JsonLines(logging.Formatter):
    """One record, one line of ASCII. Of an exception, its type and where it was raised: its text may hold what a visitor wrote."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
            line["raised_at"] = [f"{frame.filename}:{frame.lineno}" for frame in extract_tb(record.exc_info[2])[-5:]]
        return json.dumps(line, ensure_ascii=True, default=str).replace("\x7f", "\\u007f")


def configure_logging(level: str) -> None:
    """Send every logger through JsonLines to stderr. Called once, by the command line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("alembic", "httpx"):  # the one tells of tables, the other of addresses with what stands in them
        logging.getLogger(name).setLevel(logging.WARNING)


def log_fields(**fields: object) -> dict[str, object]:
    """The `extra` of a log call: these become keys of the line."""
    return {FIELDS: fields}
