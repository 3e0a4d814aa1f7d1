"""The hot path's way to Postgres: pooled, autocommitting connections with prepared statements, beside Django's own.

Each statement run here is one transaction and safe to repeat, since a COMMIT may succeed while its answer is lost.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any

import psycopg
import psycopg_pool
from django.db import connections
from psycopg.rows import namedtuple_row

from aiplatform.lib.errors import Unavailable
from aiplatform.lib.logs import log

_lock = threading.Lock()
_pools: dict[str, psycopg_pool.ConnectionPool[Any]] = {}


def run(statement: str, parameters: Sequence[Any] = (), *, patience: float = 2.0) -> list[Any]:
    """The rows of one repeatable statement, as named tuples.

    Repeats it on lost connections, deadlocks and lock timeouts for `patience` seconds, then raises Unavailable.
    """
    give_up_at = time.monotonic() + patience
    pause = 0.02
    while True:
        try:
            with _pool().connection(timeout=max(give_up_at - time.monotonic(), 0.05)) as connection:
                cursor = connection.execute(statement, parameters)
                return cursor.fetchall() if cursor.description else []
        except (psycopg.OperationalError, psycopg_pool.PoolTimeout) as error:
            if time.monotonic() + pause > give_up_at:
                log.error("postgres.unavailable", error=_first_line(error))
                raise Unavailable("The database cannot be reached; nothing was charged. Try again shortly.") from error
            time.sleep(pause)
            pause = min(pause * 2, 0.5)


def close() -> None:
    """Closes the pools of this process."""
    with _lock:
        for pool in _pools.values():
            pool.close()
        _pools.clear()


def _pool() -> psycopg_pool.ConnectionPool[Any]:
    wanted = connections["default"].settings_dict
    name = str(wanted["NAME"])
    if name not in _pools:
        with _lock:
            if name not in _pools:
                _pools[name] = _open(wanted)
    return _pools[name]


def _open(wanted: dict[str, Any]) -> psycopg_pool.ConnectionPool[Any]:
    return psycopg_pool.ConnectionPool(
        kwargs={
            "host": wanted["HOST"] or None,
            "port": wanted["PORT"] or None,
            "user": wanted["USER"] or None,
            "password": wanted["PASSWORD"] or None,
            "dbname": wanted["NAME"],
            "autocommit": True,
            "prepare_threshold": 2,
            "row_factory": namedtuple_row,
            "connect_timeout": 2,
            "application_name": "aiplatform hot path",
            "options": "-c statement_timeout=15000 -c lock_timeout=5000 -c timezone=UTC",
        },
        min_size=0,
        max_size=6,
        max_idle=300,
        reconnect_timeout=5,
        open=True,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
