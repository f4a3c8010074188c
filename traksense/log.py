"""Logs: one line a state change, to stdout, as JSON (default) or text.

The message is a constant event name; the data are `extra` fields with the prefix `traksense_`, which the output drops.
No payloads, no credentials.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

PREFIX: Final = "traksense_"


def configure(level: str, style: str) -> None:
    """Send every log line to stdout, in this style ("json" or "text")."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Chatty at INFO about what the health already says.
    logging.getLogger("hypercorn").setLevel("WARNING")


def fields(record: logging.LogRecord) -> dict[str, object]:
    """The data of a record."""
    return {key.removeprefix(PREFIX): value for key, value in record.__dict__.items() if key.startswith(PREFIX)}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts, level, logger, event, and the data."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """For people: time, level, event, then the data as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        data = " ".join(f"{key}={_plain(value)}" for key, value in fields(record).items())
        when = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        line = f"{when} {record.levelname:<7} {record.getMessage()} {data}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _plain(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return json.dumps(text, ensure_ascii=False) if " " in text else text
