"""Redis for doorbells, relay and limits: short time-outs and no hidden repeats; what is lost here costs time, not money."""

import functools
import threading
from collections.abc import Sequence
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.retry
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

from aiplatform.lib.errors import Unavailable

LOST = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, redis.exceptions.BusyLoadingError)
_local = threading.local()


def client() -> redis.Redis:
    """This thread's client. A command is sent once: whoever calls knows whether repeating it is safe."""
    if not hasattr(_local, "client"):
        _local.client = _connected(settings.REDIS_URL)
    return _local.client  # type: ignore[no-any-return]


def limiter() -> redis.Redis:
    """The same for rate limits, which may have a Redis of their own."""
    if settings.LIMITS_REDIS_URL == settings.REDIS_URL:
        return client()
    if not hasattr(_local, "limiter"):
        _local.limiter = _connected(settings.LIMITS_REDIS_URL)
    return _local.limiter  # type: ignore[no-any-return]


def _connected(url: str) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        socket_timeout=1,
        socket_connect_timeout=0.7,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
        client_name="aiplatform",
    )


def send(commands: Sequence[tuple[bytes | str | int, ...]]) -> list[Any]:
    """The answers of commands that go out together, errors among them: a pipeline, without what that does for each command.

    They go over a connection of this thread's own, since a pool looks at each connection that it lends.
    """
    connection = _connection()
    try:
        connection.send_packed_command(connection.pack_commands(commands))
        return [_answer(connection) for _ in commands]
    except BaseException:  # what is left unread must not be taken for another's answer
        connection.disconnect()
        raise


def _connection() -> Any:
    if not hasattr(_local, "connection"):
        _local.connection = client().connection_pool.make_connection()
    connection = _local.connection
    connection.connect()
    try:
        is_stale = connection.can_read()  # nothing was asked, so it can only be the end
    except LOST:
        is_stale = True
    if is_stale:
        connection.disconnect()
        connection.connect()
    return connection


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.exceptions.ResponseError as error:
        return error


def forget_client() -> None:
    """Closes this thread's clients; the next call makes others."""
    if hasattr(_local, "connection"):
        _local.connection.disconnect()
        del _local.connection
    for name in ("client", "limiter"):
        if hasattr(_local, name):
            getattr(_local, name).close()
            delattr(_local, name)


def asynchronous(*, socket_timeout: float | None) -> redis.asyncio.Redis:
    """A new client for this event loop; `socket_timeout` None is for a subscription, which may be silent for long."""
    return redis.asyncio.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=socket_timeout,
        socket_connect_timeout=2,
        socket_keepalive=True,
        health_check_interval=10,
        retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
        client_name="aiplatform-relay",
    )


def unavailable() -> Unavailable:
    """What a lost Redis means to a caller."""
    return Unavailable("The gateway's queue cannot be reached; nothing was charged. Try again shortly.")


@functools.cache
def script(source: str) -> Any:
    """A registered Lua script; call it with `keys`, `args` and `client`."""
    return redis.Redis().register_script(source)
