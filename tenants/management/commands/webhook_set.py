from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import lookup
from tenants.models import WebhookEndpoint
from tenants.webhooks import endpoints


class Command(commands.OperatorCommand):
    help = "Registers a webhook endpoint, or changes the one with this URL; a new one's secret is shown now and never again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="T", help="name or id")
        parser.add_argument("--environment", metavar="E", help="name or id: what happens there only")
        parser.add_argument("--url", required=True, metavar="URL", help="https://…")
        parser.add_argument(
            "--type", action="append", choices=list(endpoints.EVENT_TYPES), help="may be repeated (default: all)"
        )
        parser.add_argument("--description", metavar="TEXT")
        state = parser.add_mutually_exclusive_group()
        state.add_argument("--enable", dest="is_enabled", action="store_true", default=None)
        state.add_argument("--disable", dest="is_enabled", action="store_false", default=None)

    def perform(self, **options: Any) -> dict[str, Any]:
        tenant, environment, _ = lookup.scope(options["tenant"], options["environment"], None)
        url = options["url"]
        given = {
            "event_types": options["type"],
            "description": options["description"],
            "is_enabled": options["is_enabled"],
        }
        wanted = {name: value for name, value in given.items() if value is not None}
        known = WebhookEndpoint.objects.filter(tenant=tenant, environment=environment, url=url).first()
        if known:
            endpoints.change(known, **wanted)
            return endpoints.as_json(known)
        endpoint, secret = endpoints.register(tenant=tenant, environment=environment, url=url, **wanted)
        return {**endpoints.as_json(endpoint), "secret": secret}
