from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import lookup
from tenants.models import WebhookEndpoint
from tenants.webhooks import endpoints, outbox

SHOWN = 20


class Command(commands.OperatorCommand):
    help = "Webhook endpoints of a tenant, or an endpoint's latest deliveries."

    def add_arguments(self, parser: ArgumentParser) -> None:
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--tenant", metavar="T", help="name or id")
        what.add_argument("--endpoint", metavar="ID")

    def perform(self, **options: Any) -> dict[str, Any]:
        if options["endpoint"]:
            found = outbox.latest(endpoints.find(options["endpoint"]), limit=SHOWN)
            return {"deliveries": [outbox.as_json(delivery) for delivery in found]}
        tenant = lookup.tenant(options["tenant"])
        listed = WebhookEndpoint.objects.filter(tenant=tenant).select_related("environment").order_by("pk")
        return {"endpoints": [endpoints.as_json(endpoint) for endpoint in listed]}

    def text(self, result: dict[str, Any]) -> str:
        lines = [
            f"{it['id']}  {it['url']}  {it['environment'] or 'all environments'}  {', '.join(it['event_types']) or 'all types'}"
            f"  {'enabled' if it['enabled'] else 'disabled: ' + it['disabled_why']}"
            for it in result.get("endpoints", [])
        ] + [
            f"{it['id']}  {it['webhook_id']}  {it['type']}  {it['state']}  {it['tries']} tries"
            for it in result.get("deliveries", [])
        ]
        return "\n".join(lines) or "none"
