"""What tests of single endpoints ask of the records, and how they hold our bytes against the provider's."""

import uuid
from typing import Any

import httpx2

from tests.system import System


def the_call(system: System, name: str) -> dict[str, Any]:
    """The row of a call by the name in `x-call-id`."""
    (row,) = system.rows("SELECT * FROM usage_call WHERE id = %s", uuid.UUID(name.removeprefix("call_")))
    return row


def settled(system: System, headers: Any) -> dict[str, Any]:
    """The row of a call that was answered; its charge lies within its hold, and the ledger has it."""
    call = the_call(system, headers["x-call-id"])
    assert call["state"] == "settled", call
    assert call["charged_nano"] <= call["held_nano"]
    assert call["platform_loss_nano"] == 0
    entries = system.rows("SELECT amount_nano FROM usage_ledgerentry WHERE ref = %s AND kind = 'charge'", call["id"])
    assert [one["amount_nano"] for one in entries] == ([call["charged_nano"]] if call["charged_nano"] else [])
    return call


def direct(system: System, method: str, path: str, **request: Any) -> httpx2.Response:
    """The same request at the far end itself."""
    return httpx2.request(method, f"{system.far_end.base_url}{path}", trust_env=False, **request)


def same_request(system: System, before: int) -> bool:
    """Whether the last two requests at the far end, after the first `before`, had the same body."""
    ours, theirs = system.far_end.calls()[before:]
    return bool(ours["sha256"] == theirs["sha256"] and ours["bytes_in"] == theirs["bytes_in"])
