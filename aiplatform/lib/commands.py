"""What the operator's commands share: `--json`, and errors that scripts and people can both read."""

import json
import sys
from datetime import UTC, date, datetime, time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import OperationalError
from django.utils import timezone

from aiplatform.lib.errors import ApiError


class OperatorCommand(BaseCommand):
    """Its `perform` returns the result, which is printed as one JSON object on the last line, or as `text` says it.

    Expected errors end it with exit code 1 (2 for wrong arguments) and, with --json, with {"error": …} on that line.
    """

    requires_system_checks = []

    def perform(self, **options: Any) -> dict[str, Any]:
        raise NotImplementedError

    def text(self, result: dict[str, Any]) -> str:
        """A few words for people; by default every field on a line of its own."""
        return "\n".join(f"{name}: {value}" for name, value in result.items())

    def exit_code(self, result: dict[str, Any]) -> int:  # noqa: ARG002 - for commands whose result may be bad news
        return 0

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
        parser.called_from_command_line = False  # so that wrong arguments, too, are an error that we may tell
        return parser

    def run_from_argv(self, argv: list[str]) -> None:
        try:
            super().run_from_argv(argv)
        except CommandError as error:  # those of the parser only; all others have ended the process before
            self._tell(error, as_json="--json" in argv)
            print(error, file=sys.stderr)
            sys.exit(2)

    def handle(self, *_args: Any, **options: Any) -> None:
        try:
            result = self.perform(**options)
        except (ApiError, CommandError, OperationalError) as error:
            refusal = CommandError(_message(error))
            self._tell(refusal, as_json=options["json"])
            raise refusal from None
        self.stdout.write(json.dumps(result) if options["json"] else self.text(result))
        if code := self.exit_code(result):
            sys.exit(code)

    def _tell(self, error: CommandError, *, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps({"error": str(error)}))


def _message(error: Exception) -> str:
    if isinstance(error, OperationalError):
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        return f"The database cannot be used ({reason}); is DATABASE_URL right, and is it running?"
    return error.message if isinstance(error, ApiError) else str(error)


def moment(text: str, option: str) -> datetime:
    """The instant of `2027-01-31` (midnight UTC; now, if today) or `2027-01-31T12:00+01:00`; raises CommandError."""
    try:
        if len(text) == len("2027-01-31"):
            day = date.fromisoformat(text)
            now = timezone.now().astimezone(UTC)
            return now if day == now.date() else datetime.combine(day, time(), UTC)
        given = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(f"{option} {text!r} is no date; write 2027-01-31 or 2027-01-31T12:00Z.") from None
    return given if given.tzinfo else given.replace(tzinfo=UTC)


def later(text: str | None) -> datetime | None:
    """The moment that `--from` names; None for now, which is what today means, too. Raises CommandError."""
    is_now = not text or text == timezone.now().astimezone(UTC).date().isoformat()
    return None if is_now else moment(text or "", "--from")


def name(text: str, what: str, *, most: int, empty: bool = False) -> str:
    """A printable name of at most so many characters, without blanks around it; raises CommandError."""
    text = text.strip()
    if (text or empty) and len(text) <= most and text.isprintable():
        return text
    shown = ascii(text[:60]) if text else "empty"
    raise CommandError(f"{what} is {shown}; it must be {0 if empty else 1} to {most} printable characters.")
