"""Whether an answer may be given again, and kept: the environment's setting and the request's Cache-Control."""

import re
from dataclasses import dataclass

from starlette.datastructures import Headers

from aiplatform.gateway.wires import BadRequest, Facts
from tenants.auth import Principal
from tenants.models import Environment

ENDPOINTS = frozenset(("chat", "messages", "responses", "embeddings"))
_DIRECTIVE = re.compile(r"\s*([a-z-]{1,40})(?:\s*=\s*\"?(\d{1,10})\"?)?\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a call may do with kept answers: get one that is no older than `max_age_seconds`, leave one for `ttl_seconds`."""

    max_age_seconds: int
    ttl_seconds: int
    normalises: bool
    looks: bool = True

    @property
    def is_new(self) -> bool:
        """It wants an answer made for it, that others may have."""
        return not self.looks


def wish(principal: Principal, facts: Facts, headers: Headers) -> Wish | None:
    """None where the answer is neither to be looked for nor to be kept; raises BadRequest for an age that is no number.

    Source: RFC 9111, section 5.2.1. A request may ask for less than its environment allows, never for more.
    """
    if principal.cache.mode == Environment.Cache.OFF or facts.endpoint not in ENDPOINTS or facts.names or facts.is_free:
        return None
    asked = _directives(headers)
    if "no-store" in asked:
        return None
    ttl = principal.cache.ttl_seconds
    age = asked.get("max-age")
    if principal.cache.mode == Environment.Cache.ON_REQUEST and age is None:
        return None
    most = ttl if age is None else min(age, ttl)
    return Wish(most, ttl, principal.cache.normalises, looks=most > 0 and "no-cache" not in asked)


def _directives(headers: Headers) -> dict[str, int | None]:
    said: dict[str, int | None] = {}
    for line in headers.getlist("cache-control"):
        for one in line.lower().split(","):
            found = _DIRECTIVE.fullmatch(one)
            if found is None:
                if one.lstrip().startswith("max-age"):
                    raise BadRequest(
                        "Cache-Control: max-age takes a whole number of seconds, as in `max-age=60`.",
                        param="cache-control",
                    )
                continue
            said[found[1]] = int(found[2]) if found[2] else None
    if "max-age" in said and said["max-age"] is None:
        raise BadRequest(
            "Cache-Control: max-age takes a whole number of seconds, as in `max-age=60`.", param="cache-control"
        )
    return said
