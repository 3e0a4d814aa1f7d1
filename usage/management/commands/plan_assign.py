from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from aiplatform.lib import commands
from tenants import lookup
from usage import plans
from usage.models import Plan


class Command(commands.OperatorCommand):
    help = "Puts a tenant on a plan, from now or a later day on; `none` ends the one it has."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("tenant", metavar="TENANT", help="name or id")
        parser.add_argument("plan", metavar="PLAN", help="its name, or none")
        parser.add_argument("--from", dest="begins", metavar="DATE", help="2027-01-31 or 2027-01-31T12:00Z")

    def perform(self, **options: Any) -> dict[str, Any]:
        tenant = lookup.tenant(options["tenant"])
        assigned = plans.assign_plan(
            tenant=tenant,
            plan=None if options["plan"] == "none" else plan(options["plan"]),
            valid_from=commands.later(options["begins"]),
        )
        return {
            "tenant": tenant.name,
            "plan": assigned and assigned.plan.name,
            "valid_from": assigned and assigned.valid_from.isoformat(),
        }


def plan(name: str) -> Plan:
    """Raises CommandError."""
    found = Plan.objects.filter(name=name).first()
    if found is None:
        known = ", ".join(Plan.objects.order_by("name").values_list("name", flat=True)) or "none yet"
        raise CommandError(f"There is no plan {name[:60]!a}; there are: {known}.")
    return found
