from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import lookup, provider_status


class Command(commands.OperatorCommand):
    help = "Shows each credential's headroom, breakers and its provider's retry budget, as the workers share them now."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--provider", metavar="P")

    def perform(self, **options: Any) -> dict[str, Any]:
        provider = lookup.provider(options["provider"]) if options["provider"] else None
        return {"providers": provider_status.status(provider)}

    def text(self, result: dict[str, Any]) -> str:
        return "\n".join(line for one in result["providers"] for line in _lines(one)) or "There are no providers."


def _lines(one: dict[str, Any]) -> list[str]:
    lines = [f"{one['provider']}: {one['retry_budget']:.1f} repeats left"]
    for credential in one["credentials"]:
        owner = f" of {credential['tenant']}" if credential["tenant"] else ""
        lines.append(f"  {credential['name'] or 'no credential'}{owner}{'' if credential['enabled'] else ', disabled'}")
        lines += [f"    {_lane(lane)}" for lane in credential["lanes"]] or ["    nothing learnt"]
    return lines


def _lane(lane: dict[str, Any]) -> str:
    words = [
        f"{level['left']}{'/' + str(level['limit']) if level['limit'] else ''} {what}, full in {level['full_in_seconds']} s"
        for what in ("requests", "tokens")
        if (level := lane[what])
    ]
    words += [f"closed for {lane['closed_seconds']} s"] if lane["closed_seconds"] else []
    words += [f"{breaker['state']} at {breaker['worker'][:8]}" for breaker in lane["breakers"]]
    return f"{lane['model']}: {', '.join(words) or 'open'}"
