"""The log of the API process, ``logs/api.log``: its own lines and its libraries', JSON or text."""

from typing import Any

import structlog

from shared.log_lines import LogFormat


def log_config(form: LogFormat) -> dict[str, Any]:
    """A configuration of ``logging`` under which every logger writes lines of that format."""
    renderer: Any = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    if form is LogFormat.JSON:
        renderer = structlog.processors.JSONRenderer()
    before: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _part,
    ]
    if form is LogFormat.JSON:
        before.append(structlog.processors.format_exc_info)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "lines": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": before,
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    renderer,
                ],
            }
        },
        "handlers": {
            "out": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stdout",
                "formatter": "lines",
            }
        },
        "root": {"handlers": ["out"], "level": "WARNING"},
        "loggers": {"uvicorn": {"level": "INFO"}},
    }


def _part(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    return {**event, "part": "api"}
