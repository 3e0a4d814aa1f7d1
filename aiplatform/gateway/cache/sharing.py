"""From a ticket to what it gets: a call of its own, a kept answer to its question or a like one, or that of one in flight."""

import uuid

from aiplatform.gateway.admission import Admission
from aiplatform.gateway.cache.flights import Tower
from aiplatform.gateway.cache.hits import Shared
from aiplatform.gateway.cache.near import Neighbourhood
from aiplatform.gateway.tickets import Admitted, Follow, Hit, Replay, Ticket


class Sharing:
    """One web process's."""

    def __init__(self, admission: Admission, tower: Tower, neighbourhood: Neighbourhood) -> None:
        self._admission, self._tower, self._neighbourhood = admission, tower, neighbourhood

    async def outcome(self, ticket: Ticket) -> Admitted | Replay | Hit | Shared:
        """Follows the same question in flight to its end, and asks for the ticket itself where that has no answer for it.

        Raises the ApiError that refuses it.
        """
        await self._neighbourhood.look(ticket)
        outcome: Admitted | Replay | Hit | Shared | Follow = await self._admission.submit(ticket)
        try:
            while isinstance(outcome, Follow):
                outcome = await self._landed(ticket, outcome.call_id)
        except BaseException:
            self._admission.leave(ticket)
            raise
        return outcome

    async def _landed(self, ticket: Ticket, leader: uuid.UUID) -> Admitted | Replay | Hit | Shared | Follow:
        landing = await self._tower.landing(ticket.question, leader)
        if landing.entry is not None:
            if (given := await self._admission.share(ticket, landing.entry)) is not None:
                return given
        elif landing.refusal is not None:
            self._admission.shared(ticket, landing.refusal)
            return landing.refusal
        ticket.failed = (*ticket.failed, leader)
        return await self._admission.submit(ticket)
