"""The hot path's way to Postgres: one autocommitting connection a thread, with prepared statements, beside Django's own.

The hot path is a handful of long-lived threads, so there is nothing to pool; a lost connection is made anew at once. Each
statement run here is one transaction and safe to repeat, since a COMMIT may succeed while its answer is lost.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from django.db import connections
from psycopg.rows import namedtuple_row

from aiplatform.lib.errors import Unavailable
from aiplatform.lib.logs import log

_lock = threading.Lock()
_open: dict[threading.Thread, psycopg.Connection[Any]] = {}
_mine = threading.local()


def run(statement: str, parameters: Sequence[Any] = (), *, patience: float = 2.0) -> list[Any]:
    """The rows of one repeatable statement, as named tuples.

    Repeats it on lost connections, deadlocks and lock timeouts for `patience` seconds, then raises Unavailable.
    """
    give_up_at = time.monotonic() + patience
    pause = 0.02
    while True:
        try:
            cursor = _connection().execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []
        except psycopg.OperationalError as error:
            if time.monotonic() + pause > give_up_at:
                log.error("postgres.unavailable", error=_first_line(error))
                raise Unavailable("The database cannot be reached; nothing was charged. Try again shortly.") from error
            time.sleep(pause)
            pause = min(pause * 2, 0.5)


def plain(values: Iterable[object]) -> str:
    """An array of numbers, booleans or ids in hex, as Postgres reads it; None is NULL.

    These three write arrays many times faster than the driver's own, which look at each element anew.
    """
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def texts(values: Iterable[str | None]) -> str:
    """An array of texts; None is NULL."""
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


def blobs(values: Iterable[bytes | None]) -> str:
    """An array of bytes; None is NULL."""
    return "{" + ",".join(["NULL" if value is None else f'"\\\\x{value.hex()}"' for value in values]) + "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def close() -> None:
    """Closes the connections of all threads of this process; a thread that goes on opens another."""
    with _lock:
        for connection in _open.values():
            connection.close()
        _open.clear()


def _connection() -> psycopg.Connection[Any]:
    wanted = connections["default"].settings_dict
    found: psycopg.Connection[Any] | None = getattr(_mine, "connection", None)
    if found is not None and not found.closed and _mine.database == wanted["NAME"]:
        return found
    _mine.connection = _connect(wanted)
    _mine.database = wanted["NAME"]
    with _lock:
        for thread in [thread for thread in _open if not thread.is_alive()]:
            _open.pop(thread).close()
        _open[threading.current_thread()] = _mine.connection
    return _mine.connection  # type: ignore[no-any-return]


def _connect(wanted: dict[str, Any]) -> psycopg.Connection[Any]:
    place = {name.lower(): wanted[name] for name in ("HOST", "PORT", "USER", "PASSWORD") if wanted[name]}
    options = {name: value for name, value in wanted["OPTIONS"].items() if name != "pool"}
    # Plans are cached while tables are still small; by index is right from the first row to the ten-millionth,
    # and planning a money function's statements anew each time would cost more than to run them.
    limits = (
        "-c statement_timeout=15000 -c lock_timeout=5000 -c timezone=UTC -c enable_seqscan=off -c jit=off "
        "-c plan_cache_mode=force_generic_plan"
    )
    return psycopg.connect(
        **{
            **options,
            **place,
            "dbname": wanted["NAME"],
            "options": f"{options.get('options', '')} {limits}".strip(),
            "application_name": "aiplatform hot path",
        },
        autocommit=True,
        prepare_threshold=2,
        row_factory=namedtuple_row,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
