from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from aiplatform.lib import commands
from tenants import keys, lookup
from tenants.management.commands.key_issue import BINDINGS, add_bindings

LIFTED = ["none"]


class Command(commands.OperatorCommand):
    help = (
        "Binds an issued key to models, endpoints, origins or networks, on every process within a second. What is given "
        "takes the place of what there was, `none` lifts it, and what is not given stays."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("id", metavar="ID", help="id or public id, never the key itself")
        add_bindings(parser)

    def perform(self, **options: Any) -> dict[str, Any]:
        given = {many: options[one] for one, many in BINDINGS.items() if options[one]}
        if not given:
            raise CommandError("Nothing to set; give at least one of --model, --endpoint, --origin, --network.")
        wanted = {name: [] if texts == LIFTED else texts for name, texts in given.items()}
        key = keys.bind(lookup.api_key(options["id"]), **wanted)
        return {"id": str(key.pk), "public_id": key.public_id, "prefix": key.prefix, **keys.bindings_json(key)}
