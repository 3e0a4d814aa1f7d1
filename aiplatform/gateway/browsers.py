"""Pages that call from a browser: what CORS asks before, and answers that the page of the key's own origin may read.

A preflight carries no key, so it says of every page what a page may send, and gives nothing away. Whether a page may read
an answer is said by the key: only where it is bound to the page's origin (`tenants.bounds`).
"""

from starlette.requests import Request
from starlette.responses import Response

from tenants.bounds import Bounds, is_from_its_page

_METHODS = "GET, POST, DELETE"
_MAX_AGE_SECONDS = "7200"  # no browser keeps it for longer
# The SDKs' own (x-stainless-…, x-api-key, anthropic-…, openai-…) and ours, which begin with x-.
_PREFIXES = ("x-", "anthropic-", "openai-")
_NAMES = frozenset((
    "accept", "authorization", "cache-control", "content-type", "idempotency-key", "last-event-id", "prefer", "traceparent",
    "tracestate",
))  # fmt: skip


def note(request: Request, bounds: Bounds | None) -> None:
    """Remembers for the answer's headers, whatever it will be, that it goes to a page of the key's."""
    if bounds is not None and bounds.origins and is_from_its_page(bounds, request.headers.get("origin")):
        request.state.page = request.headers["origin"]


def open_to_its_page(request: Request, response: Response) -> None:
    """Lets the page of the key's own origin read the answer, an error as well, with every header; nobody else's."""
    if "origin" not in request.headers or not (page := getattr(request.state, "page", None)):
        return
    response.headers["access-control-allow-origin"] = page
    response.headers["access-control-expose-headers"] = "*"
    response.headers.add_vary_header("origin")


def is_preflight(request: Request) -> bool:
    """Whether a browser asks what a page may send (https://fetch.spec.whatwg.org/#cors-preflight-request)."""
    return (
        request.method == "OPTIONS"
        and "origin" in request.headers
        and "access-control-request-method" in request.headers
        and request.url.path.startswith("/v1/")
    )


def preflight(request: Request) -> Response:
    """What a page may send: our methods, and of the headers that it names those that callers of ours send."""
    asked = [name.strip().lower() for name in request.headers.get("access-control-request-headers", "").split(",")]
    headers = {
        "access-control-allow-origin": request.headers["origin"],
        "access-control-allow-methods": _METHODS,
        "access-control-max-age": _MAX_AGE_SECONDS,
        "vary": "origin, access-control-request-method, access-control-request-headers",
    }
    if allowed := [name for name in asked if name in _NAMES or name.startswith(_PREFIXES)]:
        headers["access-control-allow-headers"] = ", ".join(allowed)
    return Response(status_code=204, headers=headers)
