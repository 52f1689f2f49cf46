"""Log lines as JSON objects with the id of the request that they belong to."""

from __future__ import annotations

import json
import logging
import time
from contextvars import ContextVar
from typing import Any

from services.endpoints import tracing

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that this task or thread works for."""

_ROOTS = ("services", "infra", "models")
_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, logger, message, request_id, trace_id, and what `extra` held."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            line["request_id"] = current
        if trace := tracing.trace_id():
            line["trace_id"] = trace
        line |= {key: value for key, value in vars(record).items() if key not in _KNOWN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        current = request_id.get()
        return f"{super().format(record)}{f' [{current}]' if current else ''}"


def configure(log_format: str) -> None:
    """Send the records of this process's own modules to standard error, as "json" or "text"."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter() if log_format == "json" else _TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    for name in _ROOTS:
        root = logging.getLogger(name)
        root.handlers = [handler]
        root.setLevel(logging.INFO)
        root.propagate = False
