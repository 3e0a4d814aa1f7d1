"""Lists that we answer ourselves: models, and the kept objects of one environment, in pages as each wire has them."""

from collections.abc import Mapping
from typing import Any

from aiplatform.gateway.catalogue import ModelNotFound
from aiplatform.gateway.wires import OPENAI, BadRequest, Wire

MOST = 1000
_USUAL = {"openai": 100, "anthropic": 20}
Model = tuple[str, str, int]


def models(wire: Wire, found: list[Model], query: Mapping[str, str]) -> dict[str, Any]:
    """All models on OpenAI's wire, a page of them on Anthropic's where it is asked for."""
    whole = wire.models(found)
    return whole if wire is OPENAI or not query else page(wire, whole["data"], {"limit": str(MOST)} | dict(query))


def model(wire: Wire, found: list[Model], asked: str) -> dict[str, Any]:
    """One model; raises ModelNotFound."""
    known = [one for one in found if one[0] == asked]
    if not known:
        raise ModelNotFound(
            f"The model {asked[:200]!r} is not served here. GET /v1/models lists what is.", param="model"
        )
    one: dict[str, Any] = wire.models(known[:1])["data"][0]
    return one


def page(wire: Wire, rows: list[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of `rows`, which come the newest first. Raises BadRequest for a page that cannot be.

    OpenAI: `after`, `limit`, `order`, `purpose`; Anthropic: `after_id`, `before_id`, `limit`.
    """
    limit = _limit(query, _USUAL[wire.name])
    if purpose := query.get("purpose"):
        rows = [row for row in rows if row.get("purpose") == purpose]
    if query.get("order") == "asc":
        rows = rows[::-1]
    after, before = query.get("after") or query.get("after_id"), query.get("before_id")
    ids = [row.get("id") for row in rows]
    if after is not None:
        rows = rows[ids.index(after) + 1 :] if after in ids else []
    elif before is not None:
        rows = rows[: ids.index(before)] if before in ids else []
        rows, has_more = rows[-limit:], len(rows) > limit
        return _shaped(wire, rows, has_more=has_more)
    return _shaped(wire, rows[:limit], has_more=len(rows) > limit)


def _shaped(wire: Wire, rows: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    ends = {"first_id": rows[0]["id"] if rows else None, "last_id": rows[-1]["id"] if rows else None}
    kind = {"object": "list"} if wire is OPENAI else {}
    return kind | {"data": rows, "has_more": has_more} | ends


def _limit(query: Mapping[str, str], usual: int) -> int:
    given = query.get("limit", str(usual))
    if not (given.isascii() and given.isdigit() and 1 <= int(given[:6]) <= MOST * 10):
        raise BadRequest(f"`limit` must be a whole number from 1 to {MOST}.", param="limit")
    return min(int(given[:6]), MOST)
