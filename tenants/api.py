"""How `/api/` knows who asks, and how it says no: issued keys only, never a cookie, and RFC 9457 problems."""

import hmac
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import Http404
from rest_framework import exceptions
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response

from aiplatform.lib.addresses import client_address
from aiplatform.lib.errors import ApiError
from aiplatform.lib.logs import log
from tenants import auth, bounds, keys, suspension
from tenants.models import ApiKey

CHALLENGE = 'Bearer realm="api"'


class BadParameter(ApiError):
    """A query parameter is not allowed."""

    code = "bad_parameter"


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Who asks: whoever holds this key. Stands where Django expects a user."""

    key: ApiKey
    is_authenticated: bool = True
    is_active: bool = True

    @property
    def tenant_id(self) -> UUID:
        return self.key.tenant_id

    @property
    def environment_id(self) -> UUID | None:
        """The only environment whose data he may see; None for all of his tenant, which takes the scope `admin`."""
        return None if ApiKey.Scope.ADMIN in self.key.scopes else self.key.environment_id


class KeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer KEY` or `x-api-key: KEY`."""

    def authenticate(self, request: Request) -> tuple[Any, ApiKey]:
        text = auth.credential(request.headers)
        public_id = keys.public_id(text)
        if public_id is None:
            raise auth.Unauthenticated
        key = ApiKey.objects.usable().select_related("tenant", "environment").filter(public_id=public_id).first()
        if key is None or not hmac.compare_digest(bytes(key.digest), keys.digest(text)):
            raise auth.Unauthenticated
        bounds.refuse_caller(_bounds(key), origin=request.headers.get("origin"), address=_address(request))
        if scope := suspension.scope_of(key):
            raise auth.Suspended(scope)
        return KeyHolder(key), key

    def authenticate_header(self, _request: Request) -> str:
        return CHALLENGE


def _bounds(key: ApiKey) -> bounds.Bounds | None:
    return bounds.of(key.allowed_models, key.allowed_endpoints, key.allowed_origins, key.allowed_networks)


def _address(request: Request) -> str:
    """Where the request comes from."""
    forwarded = request.META.get("HTTP_X_FORWARDED_FOR", "")
    return client_address(str(request.META.get("REMOTE_ADDR", "")), [forwarded], settings.TRUSTED_PROXIES)


class MayRead(BasePermission):
    """Keys with the scope `read`."""

    message = "This key has no scope `read`; issue one that has."

    def has_permission(self, request: Request, _view: Any) -> bool:
        return isinstance(request.auth, ApiKey) and ApiKey.Scope.READ in request.auth.scopes


class MayChange(BasePermission):
    """Keys with the scope `admin`."""

    message = "This key has no scope `admin`; issue one that has."

    def has_permission(self, request: Request, _view: Any) -> bool:
        return isinstance(request.auth, ApiKey) and ApiKey.Scope.ADMIN in request.auth.scopes


def fields(request: Request, known: frozenset[str]) -> dict[str, Any]:
    """The JSON object that the request carries, which may have only these members; raises BadParameter."""
    body = request.data or {}
    if not isinstance(body, dict):
        raise BadParameter("The body is no JSON object.")
    unknown = sorted(set(map(str, body)) - known)
    if unknown:
        raise BadParameter(
            f"The member {unknown[0][:60]!a} is unknown; there are {', '.join(sorted(known)) or 'none'}."
        )
    return dict(body)


def text(body: dict[str, Any], name: str, default: str | None = None) -> str:
    """A member that must be a string; the default where it is absent or null. Raises BadParameter."""
    value = body.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise BadParameter(f"`{name}` is missing." if value is None else f"`{name}` is a string.")
    return value


def problem(error: Exception, _context: dict[str, Any]) -> Response:
    """Any error as `application/problem+json` (RFC 9457); what nobody expected is logged and tells nothing."""
    from rest_framework.views import set_rollback  # noqa: PLC0415 - that module imports this one, by its settings

    set_rollback()
    if isinstance(error, ApiError):
        return _problem(error.status, error.code, error.message, error.headers, error.details)
    if isinstance(error, Http404):
        error = exceptions.NotFound()
    elif isinstance(error, PermissionDenied):
        error = exceptions.PermissionDenied()
    if isinstance(error, exceptions.APIException):
        code = error.get_codes() if isinstance(error.detail, str) else error.default_code
        detail = str(error.detail) if isinstance(error.detail, str) else str(error.default_detail)
        return _problem(error.status_code, str(code), detail, {}, {})
    log.error("api.crashed", exc_info=error)
    return _problem(500, "internal_error", "The gateway failed; the failure is on record.", {}, {})


def _problem(status: int, code: str, detail: str, headers: dict[str, str], details: dict[str, Any]) -> Response:
    if status == HTTPStatus.UNAUTHORIZED:
        headers = headers | {"WWW-Authenticate": CHALLENGE}
    body = details | {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    return Response(body, status, headers=headers, content_type="application/problem+json")
