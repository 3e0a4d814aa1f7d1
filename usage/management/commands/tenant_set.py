from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import lookup
from usage import caps


class Command(commands.OperatorCommand):
    help = "Sets the time zone in which a tenant's calendar caps turn over; running periods are counted anew."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("tenant", metavar="T", help="name or id")
        parser.add_argument("--time-zone", required=True, metavar="ZONE", help="an IANA name, like Europe/Berlin")

    def perform(self, **options: Any) -> dict[str, Any]:
        tenant = lookup.tenant(options["tenant"])
        caps.set_time_zone(tenant, options["time_zone"])
        return {"tenant": str(tenant.pk), "name": tenant.name, "time_zone": tenant.time_zone}
