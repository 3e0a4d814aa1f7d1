"""Where providers' secrets are kept: a reference `backend:name` is all that the database knows."""

from tenants.secrets.base import SecretMissing, read

__all__ = ["SecretMissing", "read"]
