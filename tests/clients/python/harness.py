"""What every Python client's script shares: it reads what to ask from stdin, and tells what it saw as JSON."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CITY_TOOL = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}
# Each error is met by an ordinary call; what differs is the key, the model, or what the provider does.
ERRORS = {"wrong_key": "plain", "unknown_model": "plain", "capped": "plain", "limited": "plain", "failed": "plain",
          "broken": "streamed", "translated": "plain"}  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """One call: where, as whom, what, and how often the client may repeat it (None: as it does by itself)."""

    case: str
    wire: str
    root: str
    key: str
    model: str
    text: str
    limit: int
    """The most tokens of the answer."""
    retries: int | None

    @property
    def v1(self) -> str:
        return f"{self.root}/v1"

    @property
    def patience(self) -> dict[str, int]:
        return {} if self.retries is None else {"max_retries": self.retries}

    def weather(self, city: str) -> str:
        """What the tool of this test answers; the far end knows it by this text."""
        return f"{self.text}: 21 degrees in {city}"


Told = dict[str, Any]
Case = Callable[[Ask], Told]


def main(**cases: Case) -> None:
    given = json.load(sys.stdin)
    told = {}
    for case, asked in given["cases"].items():
        play = cases.get(ERRORS.get(case, case))
        told[case] = _told(play, Ask(case=case, wire=given["wire"], root=given["root"], **asked)) if play else None
    print(json.dumps(told))


def _told(play: Case, ask: Ask) -> Told:
    try:
        return play(ask)
    except Exception as error:  # noqa: BLE001 - whatever a client raises is what is asked for
        return {"error": told_error(error)}


def told_error(error: BaseException) -> Told:
    response = getattr(error, "response", None)
    headers = getattr(response, "headers", None) or {}
    return {
        "class": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "message": str(error)[:400],
        "retry_after": headers.get("retry-after"),
        "caused_by": type(error.__cause__).__name__ if error.__cause__ else None,
    }


def usage(given: int | None, spent: int | None) -> dict[str, int | None]:
    return {"input": given, "output": spent}
