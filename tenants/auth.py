"""From the credential of a request to the principal that may spend."""

import hmac
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from aiplatform.lib import postgres
from aiplatform.lib.batching import Batcher
from aiplatform.lib.errors import ApiError
from tenants import bounds, keys
from tenants.bounds import Bounds

MOST_REMEMBERED = 50_000


class Unauthenticated(ApiError):
    """The API key is missing, wrong, revoked or expired. Send `Authorization: Bearer KEY` (or `x-api-key: KEY`) with a key
    that was issued for this tenant and environment.
    """

    status = 401
    code = "invalid_api_key"


class Forbidden(ApiError):
    """This key may not do that."""

    status = 403
    code = "forbidden"


class Suspended(ApiError):
    """The kill switch is on."""

    status = 403
    code = "suspended"

    def __init__(self, scope: str = "") -> None:
        """`scope` is tenant, environment or key; empty where that is not known."""
        what = scope or "key, its environment or its tenant"
        super().__init__(
            f"The {what} is suspended: nothing is sent or charged until it is resumed. "
            "Ask an admin of your tenant, or the operator if it was he who suspended it.",
            headers={"x-should-retry": "false"},
            scope=scope or None,
        )


@dataclass(frozen=True, slots=True)
class Limit:
    """One rate limit: per minute, and at once.

    `end_user` is empty where it is on all together, `*` where it is on each by himself, else the one whom it is on. A burst is
    None where it is a minute's worth.
    """

    scope: str
    scope_id: uuid.UUID
    rpm: int | None
    tpm: int | None
    concurrency: int | None
    end_user: str = ""
    rpm_burst: int | None = None
    tpm_burst: int | None = None
    is_shadow: bool = False
    id: int = 0


@dataclass(frozen=True, slots=True)
class Caching:
    """What an environment allows of answers that are given again.

    `purges` are (key, model, until when in Unix seconds): answers made until then are not given any more, those of a key, of a
    model, or all.
    """

    mode: str = "off"
    ttl_seconds: int = 0
    normalises: bool = False
    purges: tuple[tuple[uuid.UUID | None, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Near:
    """That a name's questions may be answered by like ones' answers: those whose vectors have at least this cosine."""

    id: int
    model: str
    mode: str
    threshold: float


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: an issued key, its environment and its tenant, as of at most a second ago; admission checks the key again."""

    key_id: uuid.UUID
    tenant_id: uuid.UUID
    environment_id: uuid.UUID
    environment_kind: str
    default_max_tokens: int
    floor_max_tokens: int
    scopes: tuple[str, ...]
    limits: tuple[Limit, ...]
    digest: bytes
    usable: bool
    suspended: str = ""  # what of it is: tenant, environment or key
    prompt_cache: str = "off"
    on_disconnect: str = "finish"
    cache: Caching = Caching()
    bounds: Bounds | None = None  # what the key is bound to, if anything
    near: tuple[Near, ...] = ()


class Directory:
    """The principals that this process has seen in the last second, and those that do not exist."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Principal | None]] = {}
        self._lookups: Batcher[str, Principal | None] = Batcher("keys", find)

    async def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """The principal of a request's headers; raises Unauthenticated, without any I/O where the checksum is wrong. What he
        may do is for `authorise` to say.
        """
        text = credential(headers)
        public_id = keys.public_id(text)
        if public_id is None:
            raise Unauthenticated
        known = self._known.get(public_id)
        if known is None or known[0] < time.monotonic():
            principal = await self._lookups.submit(public_id)
            self._remember(public_id, principal)
        else:
            principal = known[1]
        if principal is None or not hmac.compare_digest(principal.digest, keys.digest(text)) or not principal.usable:
            raise Unauthenticated
        return principal

    def _remember(self, public_id: str, principal: Principal | None) -> None:
        if len(self._known) > MOST_REMEMBERED:  # only well-formed ids get here, but a stranger can make those up
            self._known.clear()
        self._known[public_id] = (time.monotonic() + settings.PRINCIPAL_CACHE_SECONDS, principal)


def authorise(principal: Principal, *, origin: str | None, address: str) -> None:
    """Raises KeyNotAllowed for a page or an address that the key is not bound to, Suspended, and Forbidden for a key that may
    make no calls.
    """
    bounds.refuse_caller(principal.bounds, origin=origin, address=address)
    if principal.suspended:
        raise Suspended(principal.suspended)
    if "calls" not in principal.scopes:
        raise Forbidden("This key has no scope `calls`; issue one that has.")


def credential(headers: Mapping[str, str]) -> str:
    """The key that a request carries, in either SDK's header; raises Unauthenticated for none or for two different ones."""
    bearer = headers.get("authorization", "")
    scheme, _, token = bearer.partition(" ")
    token = token.strip() if scheme.lower() == "bearer" else ""
    named = headers.get("x-api-key", "").strip()
    if token and named and token != named:
        raise Unauthenticated(
            "Two different API keys were sent; send one, as `Authorization: Bearer KEY` or `x-api-key: KEY`."
        )
    if not (token or named):
        raise Unauthenticated
    return token or named


_FIND = """
SELECT k.public_id, k.id, k.tenant_id, k.environment_id, e.kind, e.default_max_tokens, e.floor_max_tokens, e.prompt_cache,
    e.on_disconnect, k.scopes, k.digest,
    e.cache, e.cache_ttl_seconds, e.cache_normalises,
    ARRAY(SELECT jsonb_build_array(p.api_key_id, p.model, extract(epoch FROM p.at))
          FROM tenants_cachepurge p WHERE p.environment_id = e.id) AS purges,
    ARRAY(SELECT jsonb_build_array(n.id, n.model, n.mode, n.threshold)
          FROM tenants_nearmatching n WHERE n.environment_id = e.id AND n.mode <> 'off') AS near,
    k.allowed_models, k.allowed_endpoints, k.allowed_origins, k.allowed_networks,
    k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()) AS usable,
    CASE WHEN t.suspended_at IS NOT NULL THEN 'tenant' WHEN e.suspended_at IS NOT NULL THEN 'environment'
         WHEN k.suspended_at IS NOT NULL THEN 'key' ELSE '' END AS suspended,
    ARRAY(SELECT jsonb_build_array(
                CASE WHEN l.api_key_id IS NOT NULL THEN 'key' WHEN l.environment_id IS NOT NULL THEN 'environment'
                     ELSE 'tenant' END,
                coalesce(l.api_key_id, l.environment_id, l.tenant_id), l.rpm, l.tpm, l.concurrency, l.end_user, l.rpm_burst,
                l.tpm_burst, l.mode = 'shadow', l.id)
          FROM tenants_ratelimit l
          WHERE l.tenant_id = k.tenant_id AND (l.environment_id IS NULL OR l.environment_id = k.environment_id)
            AND (l.api_key_id IS NULL OR l.api_key_id = k.id)
          ORDER BY l.id) AS limits
FROM tenants_apikey k
JOIN tenants_environment e ON e.id = k.environment_id
JOIN tenants_tenant t ON t.id = k.tenant_id
WHERE k.public_id = ANY (%s)"""


def find(public_ids: Sequence[str]) -> list[Principal | None]:
    """The principals of these public ids, in order; None where there is no such key."""
    found = {row.public_id: _principal(row) for row in postgres.run(_FIND, [list(set(public_ids))], patience=1.5)}
    return [found.get(public_id) for public_id in public_ids]


def suspended(key_id: uuid.UUID) -> str:
    """What stops this key now, the widest first: tenant, environment or key; empty if nothing does."""
    rows = postgres.run(
        """SELECT CASE WHEN t.suspended_at IS NOT NULL THEN 'tenant' WHEN e.suspended_at IS NOT NULL THEN 'environment'
                       WHEN k.suspended_at IS NOT NULL THEN 'key' ELSE '' END AS scope
           FROM tenants_apikey k JOIN tenants_environment e ON e.id = k.environment_id
           JOIN tenants_tenant t ON t.id = k.tenant_id WHERE k.id = %s""",
        [key_id],
    )
    return rows[0].scope if rows else ""


def _principal(row: Any) -> Principal:
    limits = tuple(Limit(scope, uuid.UUID(scope_id), *figures) for scope, scope_id, *figures in row.limits)
    return Principal(
        row.id, row.tenant_id, row.environment_id, row.kind, row.default_max_tokens, row.floor_max_tokens,
        tuple(row.scopes), limits, bytes(row.digest), row.usable, row.suspended, row.prompt_cache,
        row.on_disconnect, _caching(row),
        bounds.of(row.allowed_models, row.allowed_endpoints, row.allowed_origins, row.allowed_networks),
        tuple(Near(*each) for each in row.near),
    )  # fmt: skip


def _caching(row: Any) -> Caching:
    purges = tuple((uuid.UUID(key) if key else None, model, at) for key, model, at in row.purges)
    return Caching(row.cache, row.cache_ttl_seconds, row.cache_normalises, purges)
