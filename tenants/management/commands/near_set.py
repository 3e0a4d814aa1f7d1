from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from aiplatform.lib import commands
from tenants import lookup, near_matching
from tenants.models import NearMatching


class Command(commands.OperatorCommand):
    help = "Lets like questions to one name of an environment share answers; what is not given stays, new ones begin in shadow."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="T", help="name or id")
        parser.add_argument("--environment", required=True, metavar="E", help="name or id")
        parser.add_argument(
            "--model", required=True, metavar="M", help="a route's alias or a model, as callers ask for it"
        )
        parser.add_argument("--mode", choices=NearMatching.Mode.values, help="on needs good scores in shadow")
        parser.add_argument(
            "--threshold", type=float, metavar="COSINE", help="0.8 to 1; another one begins the scores anew"
        )
        parser.add_argument("--agreement", type=float, metavar="MEAN", help="below it, it switches itself off")
        parser.add_argument("--force", action="store_true", help="on without the scores that are asked for")
        parser.add_argument("--remove", action="store_true", help="ends it, and removes its scores")

    def perform(self, **options: Any) -> dict[str, Any]:
        environment = lookup.environment(lookup.tenant(options["tenant"]), options["environment"])
        model = options["model"]
        if options["remove"]:
            if any(options[name] is not None for name in ("mode", "threshold", "agreement")) or options["force"]:
                raise CommandError("--remove goes with nothing else.")
            near_matching.remove(environment=environment, model=model)
            return {"environment": environment.name, "model": model, "removed": True}
        matching, created = near_matching.set_matching(
            environment=environment,
            model=model,
            mode=options["mode"],
            threshold=options["threshold"],
            agreement=options["agreement"],
            force=options["force"],
        )
        return {"created": created, **near_matching.as_json(matching, scores=0)}

    def text(self, result: dict[str, Any]) -> str:
        if result.get("removed"):
            return f"Near matches of {result['model']} are removed."
        return near_matching.in_words(result)
