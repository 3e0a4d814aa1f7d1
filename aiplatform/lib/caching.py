"""Django's cache as it is set up here: bytes in, bytes out, and never waited for long. Knows no settings."""

from typing import Any
from urllib.parse import urlsplit

from redis.backoff import NoBackoff
from redis.retry import Retry

WAIT_SECONDS = 0.3
PREFIX = "aiplatform"
_REDIS = ("redis", "rediss", "valkey", "valkeys", "unix")
_MEMCACHED = ("memcached", "pymemcache")


class Plain:
    """Keeps bytes as they are, so that nothing is ever unpickled that somebody else may have put there."""

    def dumps(self, value: bytes) -> bytes:
        return value

    def loads(self, value: bytes) -> bytes:
        return value

    def serialize(self, _: str, value: bytes) -> tuple[bytes, int]:
        return value, 0

    def deserialize(self, _: str, value: bytes, __: int) -> bytes:
        return value


def configuration(url: str) -> dict[str, Any]:
    """The entry of Django's CACHES for `redis://…` (also rediss, valkey, unix) or `memcached://HOST:PORT[,HOST:PORT…]`.

    Raises ValueError for any other.
    """
    scheme = urlsplit(url).scheme
    if scheme in _REDIS:
        return {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": url.replace("valkey", "redis", 1) if scheme.startswith("valkey") else url,
            "KEY_PREFIX": PREFIX,
            "OPTIONS": {
                "serializer": f"{__name__}.Plain",
                "socket_timeout": WAIT_SECONDS,
                "socket_connect_timeout": WAIT_SECONDS,
                "retry": Retry(NoBackoff(), 0),
            },
        }
    if scheme in _MEMCACHED:
        return {
            "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
            "LOCATION": url.partition("://")[2].rstrip("/").split(","),
            "KEY_PREFIX": PREFIX,
            "OPTIONS": {
                "serde": Plain(),
                "connect_timeout": WAIT_SECONDS,
                "timeout": WAIT_SECONDS,
                "no_delay": True,
            },
        }
    raise ValueError(f"CACHE_URL begins with redis:// or memcached://, not with {scheme or url[:20]!r}://.")
