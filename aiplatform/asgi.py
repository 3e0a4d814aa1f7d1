"""One process type serves both halves: /v1 on a lean ASGI application, everything else on Django."""

import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aiplatform.settings")

from django.core.asgi import get_asgi_application

_pages = get_asgi_application()

from aiplatform.gateway.app import create  # noqa: E402 - needs Django to be set up

_calls = create()


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Splits by path, as a proxy may do before two processes of this one type."""
    path = scope.get("path", "")
    if scope["type"] == "lifespan" or path.startswith("/v1/") or path == "/healthz":
        await _calls(scope, receive, send)
    else:
        await _pages(scope, receive, send)
