"""The one family of expected errors: a status, a code and a message that says what was wrong and what to do."""

from collections.abc import Mapping
from typing import Any, ClassVar


class ApiError(Exception):
    """Something expected went wrong."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "invalid_request"
    always: ClassVar[Mapping[str, str]] = {}
    """Headers that every error of the class carries."""

    def __init__(self, message: str = "", *, headers: dict[str, str] | None = None, **details: Any) -> None:
        self.message = message or " ".join((type(self).__doc__ or "").split())
        self.headers = {**self.always, **(headers or {})}
        self.details = details
        super().__init__(self.message)


class Unavailable(ApiError):
    """The gateway cannot reach a part of itself; nothing was charged. Try again shortly."""

    status = 503
    code = "unavailable"

    def __init__(self, message: str = "", *, retry_after: int = 1, **details: Any) -> None:
        super().__init__(message, headers={"retry-after": str(retry_after)}, **details)
