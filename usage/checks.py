"""What `manage.py migrate` and `manage.py check --database default` warn of."""

from collections.abc import Sequence
from typing import Any

from django.core import checks
from django.db import DatabaseError, connections


@checks.register(checks.Tags.database)
def the_application_may_only_add_to_the_ledger(
    *, databases: Sequence[str] | None = None, **_: Any
) -> list[checks.CheckMessage]:
    """Where one role does everything, it could switch the ledger's triggers off."""
    for alias in databases or ():
        with connections[alias].cursor() as cursor:
            try:
                cursor.execute("SELECT to_regclass('usage_ledgerentry') IS NOT NULL")
                (there,) = cursor.fetchone()
                if not there:
                    continue
                cursor.execute(
                    "SELECT has_table_privilege('usage_ledgerentry', 'UPDATE, DELETE, TRUNCATE'), current_user"
                )
                may, who = cursor.fetchone()
            except DatabaseError:
                continue
        if may:
            return [
                checks.Warning(
                    f'"{who}", whom the application connects as, may change the ledger; triggers alone protect it.',
                    hint="Give DATABASE_URL a login of its own, and the owner's to `migrate` as DATABASE_OWNER_URL.",
                    id="usage.W001",
                )
            ]
    return []
