"""Structured logs: one JSON line per event on standard error, with ids and never a prompt or a key."""

import logging
import sys

import structlog

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("aiplatform")


def configure(level: str) -> None:
    """Sends our events and those of the libraries to standard error, as JSON, from `level` on."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("httpx2", "httpcore2", "openai", "anthropic", "asyncio", "kombu", "celery", "amqp", "uvicorn.access"):
        logging.getLogger(noisy).setLevel("WARNING")
