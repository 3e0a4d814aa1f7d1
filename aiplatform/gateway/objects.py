"""Kept objects at our door: a request that names one goes where it is kept, and only for the environment that has it."""

import asyncio

from aiplatform.gateway.wires import BadRequest, Facts, Named, responses
from aiplatform.lib.errors import ApiError
from tenants.auth import Principal
from usage import objects


class ObjectNotFound(ApiError):
    """There is no such object here."""

    status = 404
    code = "not_found"


class PreviousResponseNotFound(ApiError):
    """There is no such response to continue."""

    status = 400
    code = "previous_response_not_found"


class NotSettled(ApiError):
    """What this batch cost is not settled yet; it and its files can be deleted once it is."""

    status = 409
    code = "not_settled"


async def attach(principal: Principal, facts: Facts, *, is_deletion: bool) -> None:
    """Finds what the request names, and binds it to where that is kept.

    Raises ObjectNotFound for an object of another tenant or environment as for one that nobody has, BadRequest where two are
    kept in different places, and NotSettled where a deletion would take away what a batch is settled by.
    """
    if not facts.names:
        return
    wanted = [(one.kind, one.id) for one in facts.names]
    rows = await asyncio.to_thread(objects.find, principal.environment_id, facts.wire, wanted)
    for named, row in zip(facts.names, rows, strict=True):
        if row is None:
            raise _not_found(named)
    places = {(row.provider, row.credential) for row in rows}
    if len(places) > 1:
        raise BadRequest(
            "The objects that this request names are kept by different providers.", param=facts.names[-1].param
        )
    if is_deletion and any(row.money_call_id is not None and row.ended_at is None for row in rows):
        raise NotSettled
    facts.objects = rows
    ((facts.provider, facts.credential),) = places
    if not facts.is_free:
        responses.bound_earlier(facts)


def _not_found(named: Named) -> ApiError:
    """In the words of OpenAI where its clients look for them."""
    shown, param = named.id[:100], named.param or "id"
    if param == "previous_response_id":
        return PreviousResponseNotFound(f"Previous response with id '{shown}' not found.", param=param)
    if named.kind in {"response", "item"}:
        return ObjectNotFound(f"{named.kind.capitalize()} with id '{shown}' not found.", param=param)
    return ObjectNotFound(f"There is no {(named.kind or 'object').replace('_', ' ')} {shown!r} here.", param=param)
