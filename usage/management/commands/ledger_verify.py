import argparse
from typing import Any

from django.core.management.base import CommandError, CommandParser

from aiplatform.lib import commands
from tenants import lookup
from usage import audit, audits


class Command(commands.OperatorCommand):
    help = "Recomputes every cap, hold, balance and seal from the rows; exit code 1 and a list on any difference."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", help="only this tenant's")
        parser.add_argument(
            "--seals",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="recompute the hash chains too (default: yes)",
        )
        parser.add_argument("--last", action="store_true", help="only say what the last audit by the clock found")

    def perform(self, **options: Any) -> dict[str, Any]:
        if options["last"]:
            found = audits.last()
            if found is None:
                raise CommandError("No audit has run yet; the beat starts one every AUDIT_SECONDS.")
            return found | {"ok": found["drift"] == 0}
        tenant_id = lookup.tenant(options["tenant"]).pk if options["tenant"] else None
        fresh = audit.verify(tenant_id=tenant_id, with_seals=options["seals"])
        return {"ok": fresh.ok, "checked": fresh.checked, "drift": fresh.drift}

    def text(self, result: dict[str, Any]) -> str:
        counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in result["checked"].items())
        listed = result.get("details", result["drift"])
        drift = [
            f"  {it['what']} {it['subject']}, {it['field']}: {it['found']} instead of {it['expected']}" for it in listed
        ]
        number = result["drift"] if "details" in result else len(drift)
        verdict = f"{number} differences:" if number else "all as it should be."
        when = f"At {result['at']}, in {result['seconds']} s: " if "at" in result else ""
        return "\n".join([f"{when}checked {counts}: {verdict}", *drift])

    def exit_code(self, result: dict[str, Any]) -> int:
        return 0 if result["ok"] else 1
