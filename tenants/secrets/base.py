"""Reads a secret by its reference, in worker processes only."""

import os

from aiplatform.lib.errors import ApiError


class SecretMissing(ApiError):
    """The provider's secret cannot be read; the operator must make it available to the workers."""

    status = 503
    code = "provider_secret_missing"


def read(reference: str) -> str:
    """The secret behind `env:NAME`; an empty reference is a provider that needs none. Raises SecretMissing."""
    if not reference:
        return ""
    backend, _, name = reference.partition(":")
    secret = os.environ.get(name, "") if backend == "env" else ""
    if not secret:
        raise SecretMissing(f"The secret {reference!r} of this provider is not set where the workers run.")
    return secret
