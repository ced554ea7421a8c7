"""Structured logs: JSON for machines, readable on a terminal, never an exception's text (it may hold personal data).

What happens to one transaction is told by `step` and `unusual`, so that one grep for its name, over the logs of all
processes, gives its story.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Collection, MutableMapping
from types import TracebackType
from typing import Any

import structlog


def configure_logging(service: str, *, level: str = "INFO", json: bool | None = None) -> None:
    """Sends every log line of the process to standard error.

    json: None means JSON unless standard error is a terminal.
    """
    as_json = not sys.stderr.isatty() if json is None else json

    def of_service(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service  # here, since context variables don't reach the threads that answer calls
        return event

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        of_service,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _silent_exceptions,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer(sort_keys=False)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _bare_foreign],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)
    for name in ("tandem", service):
        logging.getLogger(name).setLevel(level.upper())


def logger(name: str) -> Any:
    """A logger: `log.info("swept", claimed=3)`. Values are ids, counts, names and reasons, never facts of a person."""
    return structlog.get_logger(name)


FEW = 20
"""Transactions of one step that have a line of their own at INFO."""

_levels = logging.getLogger("tandem")


def debugging() -> bool:
    """Whether every step of every transaction is told: the level of the logger "tandem" is DEBUG."""
    return _levels.isEnabledFor(logging.DEBUG)


def step(log: Any, event: str, keys: Collection[object], **values: object) -> None:
    """A line a transaction at DEBUG, for what happens to each of them. Where that is off, nothing is formatted."""
    if debugging():
        for key in keys:
            log.debug(event, transaction=str(key), **values)


def unusual(log: Any, event: str, keys: Collection[object], **values: object) -> None:
    """A line a transaction at INFO, for what happens after a crash or in some other trouble; of many one line in all,
    and the rest at DEBUG."""
    if len(keys) > FEW:
        log.info(event, transactions=len(keys), **values)
        step(log, event, keys, **values)
    elif keys and _levels.isEnabledFor(logging.INFO):
        for key in keys:
            log.info(event, transaction=str(key), **values)


def frames(error: BaseException) -> str:
    """Where an exception came from: its types and source lines, without any message."""
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None and len(parts) < 5:
        where = " < ".join(
            f"{frame.filename.rsplit('/', 2)[-1]}:{frame.lineno}:{frame.name}"
            for frame in reversed(traceback.extract_tb(current.__traceback__)[-8:])
        )
        parts.append(f"{type(current).__name__} at {where or '?'}")
        current = current.__cause__ or current.__context__
    return "; caused by ".join(parts)


def _silent_exceptions(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replaces exc_info by types and source lines."""
    info = event.pop("exc_info", None)
    error: BaseException | None = None
    if isinstance(info, BaseException):
        error = info
    elif isinstance(info, tuple) and len(info) == 3:
        error = info[1]
    elif info:
        error = sys.exc_info()[1]
    if error is not None:
        event["exception"] = frames(error)
    return event


def _bare_foreign(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A library's log line: its format without the arguments, which may hold anything."""
    record: logging.LogRecord | None = event.get("_record")
    if record is not None:
        event["event"] = str(record.msg) if not record.args else f"{record.msg} (arguments left out)"
        event["logger"] = record.name
    return event


def log_uncaught(service: str) -> None:
    """Uncaught exceptions, of threads too, become one log line without the exception's text."""
    import threading

    log = logger(service)

    def hook(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            return
        log.error("uncaught exception", exception=frames(error))

    sys.excepthook = hook
    threading.excepthook = lambda args: hook(args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)
