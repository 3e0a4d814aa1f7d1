"""What a batch can cost: each of its lines is read as a call of its own, at the batch price (docs/objects.md)."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from aiplatform.gateway import endpoints
from aiplatform.gateway.wires import Asked, BadRequest, Facts, NotPriced, forms
from aiplatform.gateway.wires.base import read_object
from aiplatform.lib import postgres
from aiplatform.providers.endpoints import ENDPOINTS
from usage.pricing import Rates

MOST_LINES = 50_000
VARIANT = "batch"
# Whose results tell what each line used.
BATCHED = frozenset((("openai", "chat"), ("openai", "embeddings")))


class Line(NamedTuple):
    """One request of a batch: its endpoint's name, and its body."""

    endpoint: str
    body: bytes


def lines_of(call: Any) -> list[Line]:
    """The lines of a batch that `call` is to create; raises BadRequest or NotPriced."""
    return list(_openai_lines(call) if call.wire == "openai" else _anthropic_lines(call))


def read(call: Any, lines: list[Line]) -> tuple[str, list[Facts]]:
    """The model, and the facts of each line. Raises ApiError with the line at fault."""
    model, found = "", []
    for number, line in enumerate(lines, 1):
        facts = _read_line(call.wire, line, number)
        if model and facts.model != model:
            raise NotPriced(
                f"Line {number} names {facts.model[:60]!r}, others {model[:60]!r}; a batch is of one model."
            )
        model = facts.model
        found.append(facts)
    if not found:
        raise BadRequest("The batch has no lines.")
    return model, found


def worst_nano(rates: Rates, found: list[Facts]) -> int:
    """The most that all lines cost at the batch price; raises NotBounded or NotPriced."""
    if rates.has_tiers(VARIANT):
        raise NotPriced(
            "The batch price of this model depends on the length of each input, which the sum of a batch does not tell; "
            "send its lines one by one.",
            param="model",
        )
    worst = 0
    for facts in found:
        bound = facts.bound._replace(variants=(VARIANT,), may_serve=(), instead=None)
        base_nano, output_pico = rates.bound(bound)
        worst += base_nano - (-output_pico * (facts.max_tokens or 0) // 1000)
    return worst


def _read_line(wire: str, line: Line, number: int) -> Facts:
    one = ENDPOINTS[wire, line.endpoint]
    try:
        facts = endpoints.READERS[wire, line.endpoint](Asked(one, line.body, {}, {}, ""))
    except (BadRequest, NotPriced) as error:
        error.message = f"Line {number}: {error.message}"
        raise
    if facts.max_tokens is None:
        raise NotPriced(
            f"Line {number} has no output limit, and none can be set in a file; give `{facts.max_tokens_field}`."
        )
    if facts.streamed:
        raise BadRequest(f"Line {number} asks for a stream, which a batch has not.")
    if facts.names:
        raise NotPriced(f"Line {number} goes on from a kept object, whose length is not in the batch.")
    return facts


def _openai_lines(call: Any) -> Iterator[Line]:
    asked = read_object(bytes(call.body))
    path = asked.get("endpoint")
    one = endpoints.by_path(path) if isinstance(path, str) else None
    if one is None or (one.wire, one.name) not in BATCHED:
        raise NotPriced("Only /v1/chat/completions and /v1/embeddings are known as batches here.", param="endpoint")
    for number, raw in enumerate(_uploaded(call, asked["input_file_id"]).split(b"\n"), 1):
        if not raw.strip():
            continue
        if number > MOST_LINES:
            raise BadRequest(f"The file has more than {MOST_LINES} lines.")
        line = read_object(raw)
        if (line.get("method"), line.get("url")) != ("POST", path) or not isinstance(line.get("body"), dict):
            raise BadRequest(f"Line {number} must be a POST to {path} with a body.")
        yield Line(one.name, orjson.dumps(line["body"]))


def _anthropic_lines(call: Any) -> Iterator[Line]:
    requests = read_object(bytes(call.body)).get("requests")
    if not isinstance(requests, list) or len(requests) > MOST_LINES:
        raise BadRequest(f"`requests` must be an array of at most {MOST_LINES}.", param="requests")
    for number, one in enumerate(requests, 1):
        if not isinstance(one, dict) or not isinstance(one.get("params"), dict):
            raise BadRequest(f"requests: the entry {number} has no `params`.", param="requests")
        yield Line("messages", orjson.dumps(one["params"]))


def _uploaded(call: Any, file_id: str) -> bytes:
    """The file as it was uploaded through us; its form stands with the call that did."""
    rows = postgres.run(
        """SELECT p.headers, p.body FROM usage_providerobject o
           JOIN usage_callpayload p ON p.call_id = o.call_id AND p.kind = 'request'
           WHERE o.environment_id = %s AND o.wire = %s AND o.provider_id = %s AND o.kind = 'file'
             AND o.money_call_id IS NULL""",
        [call.environment_id, call.wire, file_id],
    )
    if not rows:
        raise NotPriced("Only a file that was uploaded here has known lines.", param="input_file_id")
    form = forms.read(rows[0].headers["forward"].get("content-type", ""), bytes(rows[0].body))
    return form.only("file").data
