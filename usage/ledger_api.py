"""What lets a tenant verify his own ledger: the seals of his chain, and the very bytes that they cover."""

from urllib.parse import urlencode

from django.http import HttpResponse
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from tenants.api import BadParameter, MayRead
from tenants.lookup import NotFound
from tenants.models import ApiKey
from usage import seals
from usage.api import Reading, page_size
from usage.models import LedgerSeal

LARGEST_N = 2**31 - 1


class Seals(Reading):
    """`GET /api/ledger/seals`: newest first; with `after`, the blocks that follow that one, in order."""

    parameters = frozenset({"after", "before", "limit"})

    def get(self, request: Request) -> Response:
        holder = self.holder(request)
        after, before = _number(request, "after"), _number(request, "before")
        if after is not None and before is not None:
            raise BadParameter("`after` reads forwards and `before` backwards; give one of them.")
        limit = page_size(request.query_params.get("limit"))
        chain = LedgerSeal.objects.filter(tenant_id=holder.tenant_id)
        if after is not None:
            chain = chain.filter(n__gt=after).order_by("n")
        else:
            chain = chain.filter(n__lt=LARGEST_N if before is None else before).order_by("-n")
        page = list(chain[: limit + 1])
        following = None
        if len(page) > limit:
            page.pop()
            cursor = {"before" if after is None else "after": page[-1].n}
            query = urlencode({**request.query_params.dict(), **cursor})
            following = request.build_absolute_uri(f"{request.path}?{query}")
        return Response({"results": [as_json(block) for block in page], "next": following})


class MayReadTheTenant(MayRead):
    """Keys with the scopes `read` and `admin`: entries of all environments are in one chain."""

    message = "The ledger's entries span all environments; they take a key with the scopes `read` and `admin`."

    def has_permission(self, request: Request, view: object) -> bool:
        key = request.auth
        return super().has_permission(request, view) and isinstance(key, ApiKey) and ApiKey.Scope.ADMIN in key.scopes


class Lines(JSONRenderer):
    """For `Accept: application/x-ndjson`; errors are JSON all the same."""

    media_type = "application/x-ndjson"


class SealEntries(Reading):
    """`GET /api/ledger/seals/N/entries`: exactly the bytes that block N covers, one entry a line."""

    permission_classes = [MayReadTheTenant]
    renderer_classes = [JSONRenderer, Lines]

    def get(self, request: Request, n: str) -> HttpResponse:
        holder = self.holder(request)
        if not (n.isascii() and n.isdecimal() and int(n[:10]) <= LARGEST_N):
            raise NotFound("A block has a number, from 1 on.")
        return HttpResponse(seals.lines(holder.tenant_id, int(n)), content_type=Lines.media_type)


def as_json(block: LedgerSeal) -> dict[str, object]:
    return {
        "n": block.n,
        "first_number": block.first_number,
        "last_number": block.last_number,
        "entries": block.entries,
        "prev_sha256": block.prev_sha256,
        "sha256": block.sha256,
        "version": block.version,
        "sealed_at": block.sealed_at,
    }


def _number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 11):  # noqa: PLR2004 - digits of a 32-bit number
        raise BadParameter(f"`{name}` is the number of a block.")
    return int(text)
