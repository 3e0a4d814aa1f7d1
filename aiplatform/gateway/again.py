"""What a web process answers by itself about a stored response: its stream from what is on record, and no to its deletion."""

import asyncio
import re
from typing import Any
from urllib.parse import parse_qs

import jiter

from aiplatform.gateway.objects import NotSettled
from aiplatform.gateway.streaming import Events
from aiplatform.gateway.wires import Facts
from aiplatform.lib import postgres

_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_TERMINAL = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")


async def events(facts: Facts) -> bytes | None:
    """The rest of the stream of a response in the background, byte for byte as it was sent; None where the provider must tell.

    OpenAI streams a response again for some minutes only; what we have sent ourselves we have for good.
    """
    if facts.endpoint != "responses.retrieve" or not facts.streamed or facts.objects[0].deleted_at is not None:
        return None
    asked = parse_qs(facts.target.partition("?")[2])
    after = asked.get("starting_after", [""])[-1]
    if asked.keys() - {"stream", "starting_after"} or (after and not _NUMBER.fullmatch(after)):
        return None
    rows = await asyncio.to_thread(_sent, facts.objects[0].call_id)
    return _after(bytes(rows[0].body), int(after) if after else -1) if rows else None


async def refuse_deletion(facts: Facts) -> None:
    """Raises NotSettled for a response that is still being worked on: nobody could tell any more what it cost."""
    if facts.endpoint != "responses.delete":
        return
    call_id = facts.objects[0].call_id
    if await asyncio.to_thread(postgres.run, "SELECT 1 FROM usage_call WHERE id = %s AND is_live", [call_id]):
        raise NotSettled(
            "This response is still being worked on: cancel it, or wait for its end, before you delete it."
        )


def _sent(call_id: Any) -> list[Any]:
    return postgres.run(
        """SELECT p.body FROM usage_call c JOIN usage_callpayload p ON p.call_id = c.id AND p.kind = 'response'
           WHERE c.id = %s AND c.streamed AND c.state IN ('settled', 'void') AND c.status = 200""",
        [call_id],
    )


def _after(stream: bytes, after: int) -> bytes | None:
    """The events with greater numbers, if the stream is whole and was of a response in the background."""
    found, is_background, is_whole = [], False, False
    for raw, data in Events().feed(stream):
        event = _object(data)
        response = event.get("response")
        is_background = is_background or (isinstance(response, dict) and response.get("background") is True)
        is_whole = is_whole or event.get("type") in _TERMINAL
        number = event.get("sequence_number")
        if type(number) is int and number > after:
            found.append(raw)
    return b"".join(found) if is_background and is_whole else None


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = jiter.from_json(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
