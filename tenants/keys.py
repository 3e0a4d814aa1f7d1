"""API keys that we issue: `aip_prod_<12 public id>_<32 secret><6 checksum>`, in base62, so a double click takes it all.

The public id finds the row and may be shown; the checksum turns typing errors and garbage away before any I/O; of the
whole only a keyed hash is stored. The secret has 190 bits: a fast hash is enough, a slow one would be a way to harm us.
"""

import hmac
import ipaddress
import re
import secrets
import string
import zlib
from collections.abc import Callable, Iterable
from datetime import datetime

from django.conf import settings
from django.utils import timezone

from aiplatform.lib.errors import ApiError
from aiplatform.lib.logs import log
from aiplatform.providers.endpoints import ENDPOINTS
from tenants.bounds import EVERY_SUCH
from tenants.models import ApiKey, Environment

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
PUBLIC_ID_LENGTH, SECRET_LENGTH, CHECKSUM_LENGTH = 12, 32, 6
_SHAPE = re.compile(
    rf"(?P<body>aip_(?:{'|'.join(Environment.Kind.values)})_(?P<public_id>[0-9A-Za-z]{{{PUBLIC_ID_LENGTH}}})"
    rf"_[0-9A-Za-z]{{{SECRET_LENGTH}}})(?P<checksum>[0-9A-Za-z]{{{CHECKSUM_LENGTH}}})"
)
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)
_USUAL_PORTS = {"http": "80", "https": "443"}  # which browsers leave out
_LONGEST = {"models": 200, "origins": 300}
MOST_BOUND = 100


class KeyRefused(ApiError):
    """No key can be issued like this."""


def issue(
    *,
    environment: Environment,
    name: str = "",
    scopes: Iterable[str] = (ApiKey.Scope.CALLS, ApiKey.Scope.READ),
    expires_at: datetime | None = None,
    models: Iterable[str] = (),
    endpoints: Iterable[str] = (),
    origins: Iterable[str] = (),
    networks: Iterable[str] = (),
) -> tuple[ApiKey, str]:
    """A new key and its text, which is shown now and never again; bound as `bind` says. Raises KeyRefused."""
    bound_to = _bound({"models": models, "endpoints": endpoints, "origins": origins, "networks": networks})
    scopes = sorted(set(scopes))
    unknown = set(scopes) - set(ApiKey.Scope.values)
    if unknown or not scopes:
        given = ", ".join(sorted(unknown)) or "none"
        raise KeyRefused(f"The scopes of a key are {', '.join(ApiKey.Scope.values)}, not {given}.")
    if expires_at and expires_at <= timezone.now():
        raise KeyRefused(f"The key would have expired at {expires_at:%Y-%m-%d %H:%M} UTC already; give a later date.")
    public, body = _new_body(environment.kind)
    text = body + _checksum(body)
    key = ApiKey.objects.create(
        tenant_id=environment.tenant_id,
        environment=environment,
        name=name,
        public_id=public,
        prefix=body[: -SECRET_LENGTH - 1],
        digest=digest(text),
        pepper_version=settings.KEY_PEPPER_VERSION,
        scopes=scopes,
        expires_at=expires_at,
        **bound_to,
    )
    return key, text


def bind(key: ApiKey, **wanted: Iterable[str] | None) -> ApiKey:
    """Binds the key to these `models` (names as asked for, or beginnings like `gpt-5*`), `endpoints` (as in
    `aiplatform.providers.endpoints`), `origins` (scheme://host[:port]) and `networks` (addresses or CIDR), on every process
    within a second. None stays as it is, an empty list lifts the binding. Raises KeyRefused.
    """
    changes = _bound({name: values for name, values in wanted.items() if values is not None})
    for field, values in changes.items():
        setattr(key, field, values)
    key.save(update_fields=list(changes))
    log.info("key.bound", key=str(key.pk), **{field: len(values) for field, values in changes.items()})
    return key


def bindings_json(key: ApiKey) -> dict[str, list[str]]:
    """What the key is bound to, by kind; an empty list: everything, of origins: none."""
    return {name: list(getattr(key, f"allowed_{name}")) for name in _READERS}


def public_id(text: str) -> str | None:
    """The public id in a key's text; None for whatever we cannot have issued. Does no I/O."""
    found = _SHAPE.fullmatch(text)
    if not found or found["checksum"] != _checksum(found["body"]):
        return None
    return found["public_id"]


def digest(text: str) -> bytes:
    """What is stored of a key: HMAC-SHA256 under the pepper, which is kept outside the database."""
    return hmac.digest(settings.KEY_PEPPER, text.encode(), "sha256")


def revoke(key: ApiKey) -> ApiKey:
    """Ends a key for good, on every process within a second; the first revocation's time stays."""
    ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now())
    key.refresh_from_db(fields=["revoked_at"])
    return key


def _bound(wanted: dict[str, Iterable[str]]) -> dict[str, list[str]]:
    """The columns and their values; raises KeyRefused."""
    found = {
        f"allowed_{name}": sorted({_READERS[name](text.strip()) for text in texts}) for name, texts in wanted.items()
    }
    for field, values in found.items():
        if len(values) > MOST_BOUND:
            raise KeyRefused(f"A key is bound to at most {MOST_BOUND} {field.removeprefix('allowed_')}.")
    return found


def _model(text: str) -> str:
    stem = text.removesuffix(EVERY_SUCH)
    if stem and text.isprintable() and EVERY_SUCH not in stem and len(text) <= _LONGEST["models"]:
        return text
    raise KeyRefused(
        f"{text[:60]!a} is no model; write its name as calls ask for it, or the beginning of several, like gpt-5*."
    )


def _endpoint(text: str) -> str:
    known = sorted({name for _, name in ENDPOINTS})
    if text not in known:
        raise KeyRefused(f"There is no endpoint {text[:60]!a}; there are {', '.join(known)}.")
    return text


def _origin(text: str) -> str:
    """As browsers write it: in small letters, without a path, without the port that goes without saying."""
    found = _ORIGIN.fullmatch(text.lower())
    if not found or len(text) > _LONGEST["origins"] or int(found["port"] or 1) not in range(1, 65536):
        raise KeyRefused(
            f"{text[:80]!a} is no origin; write scheme, host and perhaps port, like https://app.example.com, without a path."
        )
    is_usual = _USUAL_PORTS.get(found["scheme"]) == found["port"]
    return f"{found['scheme']}://{found['host']}" + ("" if is_usual or not found["port"] else f":{int(found['port'])}")


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise KeyRefused(f"{text[:60]!a} is no network ({str(error)[:120]}); write 10.1.0.0/16 or 192.0.2.7.") from None


_READERS: dict[str, Callable[[str], str]] = {
    "models": _model,
    "endpoints": _endpoint,
    "origins": _origin,
    "networks": _network,
}


def _new_body(kind: str) -> tuple[str, str]:
    public = _random(PUBLIC_ID_LENGTH)
    return public, f"aip_{kind}_{public}_{_random(SECRET_LENGTH)}"


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _checksum(body: str) -> str:
    """CRC-32 of everything before it, in base62."""
    rest, digits = zlib.crc32(body.encode()), []
    for _ in range(CHECKSUM_LENGTH):
        rest, digit = divmod(rest, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
