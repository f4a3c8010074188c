"""Logs: one line a state change, to stdout, as JSON (default) or text.

The message is a constant event name; the data are `extra` fields with the prefix `traksense_`, which the output drops.
No payloads, no credentials. What others named is escaped: a log is read on a terminal in the end.

A log that cannot be written must not stop what it tells of. A line that stdout refuses, or that nobody takes from its
pipe, is dropped and counted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import sys
from datetime import UTC, datetime
from typing import Final

from traksense.names import printable, printable_json

PREFIX: Final = "traksense_"

PIECE_BYTES: Final = 4096
"""A pipe that is ready takes so much without blocking. Source: POSIX, PIPE_BUF; 4096 on Linux."""

PATIENCE_SECONDS: Final = 0.2
"""How long a line waits for somebody to read from the pipe, before the first is dropped. Chosen by guess."""


def configure(level: str, style: str) -> None:
    """Send every log line to stdout, in this style ("json" or "text")."""
    handler = StdoutHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def failures() -> int:
    """How many lines could not be written in this process."""
    return StdoutHandler.failures


class StdoutHandler(logging.Handler):
    """Writes whole lines to stdout.

    Past Python's buffers: what they could not get rid of they would try again at the end of the process, which then
    has exit status 120.

    Attributes:
        failures: How many lines were dropped.
    """

    failures = 0

    def __init__(self) -> None:
        super().__init__()
        self._failing = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or drop it."""
        try:
            line = f"{self.format(record)}\n"
            try:
                fd = sys.stdout.fileno()
            except (AttributeError, OSError, ValueError):
                sys.stdout.write(line)  # a test's, in memory
                sys.stdout.flush()
            else:
                sys.stdout.flush()
                _write(fd, line.encode(), 0 if self._failing else PATIENCE_SECONDS)
        except Exception as error:  # noqa: BLE001  (whatever is wrong with a log line, the service goes on)
            self._drop(error)
        else:
            self._failing = False

    def _drop(self, error: Exception) -> None:
        StdoutHandler.failures += 1
        if self._failing:
            return
        self._failing = True
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if sys.stdout is None:
            reason = "it is closed"
        with contextlib.suppress(OSError, ValueError, AttributeError):  # else there is nobody to tell but the metric
            told = f"traksense: cannot write the log to stdout: {printable(reason)}\n"
            _write(sys.stderr.fileno(), told.encode(), 0)


def _write(fd: int, data: bytes, patience: float) -> None:
    """Write all of it, unless that would block for longer than so many seconds.

    Raises:
        OSError: It cannot be written, or (TimeoutError) nobody reads it.
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while data:
        if not poll.poll(patience * 1000):
            raise TimeoutError("nobody reads it")
        data = data[os.write(fd, data[:PIECE_BYTES]) :]


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
        return printable_json(line)


class TextFormatter(logging.Formatter):
    """For people: time, level, event, then the data as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        data = " ".join(f"{key}={_plain(value)}" for key, value in fields(record).items())
        when = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        line = printable(f"{when} {record.levelname:<7} {record.getMessage()} {data}".rstrip())
        if not record.exc_info:
            return line
        return "\n".join([line, *map(printable, self.formatException(record.exc_info).splitlines())])


def _plain(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return json.dumps(text, ensure_ascii=False) if " " in text else text
