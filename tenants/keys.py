"""API keys that we issue: `aip_prod_<12 public id>_<32 secret><6 checksum>`, in base62, so a double click takes it all.

The public id finds the row and may be shown; the checksum turns typing errors and garbage away before any I/O; of the
whole only a keyed hash is stored. The secret has 190 bits: a fast hash is enough, a slow one would be a way to harm us.
"""

import hmac
import re
import secrets
import string
import zlib
from collections.abc import Iterable
from datetime import datetime

from django.conf import settings
from django.utils import timezone

from aiplatform.lib.errors import ApiError
from tenants.models import ApiKey, Environment

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
PUBLIC_ID_LENGTH, SECRET_LENGTH, CHECKSUM_LENGTH = 12, 32, 6
_SHAPE = re.compile(
    rf"(?P<body>aip_(?:{'|'.join(Environment.Kind.values)})_(?P<public_id>[0-9A-Za-z]{{{PUBLIC_ID_LENGTH}}})"
    rf"_[0-9A-Za-z]{{{SECRET_LENGTH}}})(?P<checksum>[0-9A-Za-z]{{{CHECKSUM_LENGTH}}})"
)


class KeyRefused(ApiError):
    """No key can be issued like this."""


def issue(
    *,
    environment: Environment,
    name: str = "",
    scopes: Iterable[str] = (ApiKey.Scope.CALLS, ApiKey.Scope.READ),
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its text, which is shown now and never again. Raises KeyRefused."""
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
    )
    return key, text


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
