from argparse import ArgumentParser
from typing import Any

from django.db import transaction
from django.utils import timezone

from aiplatform.lib import commands
from moderation.models import Policy
from tenants import lookup


class Command(commands.OperatorCommand):
    help = "Sets the terms that an environment's calls may not contain; none given: everything passes."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True)
        parser.add_argument("--environment", required=True)
        parser.add_argument("--block", action="append", default=[], metavar="TERM", help="a word or phrase; repeat it")

    def perform(self, **options: Any) -> dict[str, Any]:
        environment = lookup.environment(lookup.tenant(options["tenant"]), options["environment"])
        terms = sorted({commands.name(term, "--block", most=200) for term in options["block"]})
        with transaction.atomic():
            policy, _ = Policy.objects.select_for_update().get_or_create(environment=environment)
            if policy.blocked_terms != terms:
                policy.blocked_terms, policy.version, policy.changed_at = terms, policy.version + 1, timezone.now()
                policy.save()
        return {"environment": str(environment.id), "version": policy.version, "blocked_terms": terms}
