"""Structured logs: one JSON object a line, in a file that the process opens itself and rotates by size.

Nobody ever blocks on stdout, and a full disk costs log lines, never work.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import structlog

_BYTES, _KEPT = 10 * 1024 * 1024, 5


class _Quiet(RotatingFileHandler):
    """Drops a line that cannot be written (full disk, read-only var/), and goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        del record


def open_log(path: Path) -> Any:
    """A structlog logger that appends to `path`: `ts` (RFC 3339, UTC), `level`, `event`, then fields."""
    logger = logging.Logger(path.stem)
    try:
        handler: logging.Handler = _Quiet(path, maxBytes=_BYTES, backupCount=_KEPT, encoding="utf-8", delay=True)
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    return structlog.wrap_logger(
        logger,
        wrapper_class=structlog.BoundLogger,
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            _level,
            structlog.processors.format_exc_info,
            _in_order,
            structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
        ],
    )


def _level(_logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["level"] = method
    return event


def _in_order(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: event.pop(key) for key in ("ts", "level", "event")} | dict(event)
