"""Signatures of Standard Webhooks (standardwebhooks.com), and their secrets at rest.

A secret must be usable, so it is not hashed but encrypted: AES-256-GCM under a key derived from SECRET_KEY, bound to its
endpoint. A dump of the database alone reads none, and a row's secret moved to another row opens nothing.
"""

import base64
import functools
import hashlib
import hmac
import secrets
import uuid

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

PREFIX = "whsec_"
SECRET_BYTES = 32
_VERSION = b"\x01"
_NONCE_BYTES = 12


class Unreadable(Exception):
    """A secret that no key of ours opens: SECRET_KEY has changed and is not among SECRET_KEY_FALLBACKS."""


def new_secret() -> str:
    """`whsec_` and 32 random bytes in base64, as receivers' libraries take it."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def encrypted(secret: str, endpoint_id: uuid.UUID) -> bytes:
    """Version, nonce and ciphertext."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return _VERSION + nonce + _cipher(settings.SECRET_KEY).encrypt(nonce, secret.encode(), endpoint_id.bytes)


def decrypted(stored: bytes, endpoint_id: uuid.UUID) -> str:
    """The secret; raises Unreadable. Only whoever signs calls this."""
    nonce, ciphertext = stored[1 : 1 + _NONCE_BYTES], stored[1 + _NONCE_BYTES :]
    for key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS) if stored[:1] == _VERSION else ():
        try:
            return _cipher(key).decrypt(nonce, ciphertext, endpoint_id.bytes).decode()
        except InvalidTag:
            continue
    raise Unreadable


def signature(secret: str, *, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the HMAC-SHA-256 of id, Unix seconds and body in base64; `secret` begins with `whsec_`."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


@functools.cache
def _cipher(secret_key: str) -> AESGCM:
    derived = HKDF(hashes.SHA256(), 32, salt=None, info=b"aiplatform webhook secrets, version 1")
    return AESGCM(derived.derive(secret_key.encode()))
