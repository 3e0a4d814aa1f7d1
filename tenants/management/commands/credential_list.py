from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import credentials, lookup
from tenants.models import ProviderCredential


class Command(commands.OperatorCommand):
    help = "Lists providers' credentials: weights, limits, and where the secrets are to be found, never a secret."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--provider", metavar="P")
        parser.add_argument("--tenant", metavar="T", help="name or id; only its own")

    def perform(self, **options: Any) -> dict[str, Any]:
        found = ProviderCredential.objects.select_related("provider", "tenant").order_by("provider__name", "pk")
        if options["provider"]:
            found = found.filter(provider=lookup.provider(options["provider"]))
        if options["tenant"]:
            found = found.filter(tenant=lookup.tenant(options["tenant"]))
        return {"credentials": [credentials.as_json(one) for one in found]}

    def text(self, result: dict[str, Any]) -> str:
        lines = [_line(one) for one in result["credentials"]]
        return "\n".join(lines) or "There are no credentials."


def _line(one: dict[str, Any]) -> str:
    limits = ", ".join(f"{one[figure]} {figure}" for figure in credentials.FIGURES if one[figure]) or "no limits"
    state = "" if one["enabled"] else ", disabled"
    owner = one["tenant"] or "the platform"
    return f"{one['provider']} {one['name']} of {owner}: {one['secret_ref']}, weight {one['weight']}, {limits}{state}"
