"""Django's `migrate`, run as the database's owner; afterwards the application's role has its grants again."""

from typing import Any

from django.core.management.base import CommandError
from django.core.management.commands import migrate
from django.db import DEFAULT_DB_ALIAS, connection

from usage import grants


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        if not options["skip_checks"]:
            self.check(databases=[options["database"]])  # as the application, whose rights are looked at
        if options["database"] != DEFAULT_DB_ALIAS or options["plan"] or options["check_unapplied"]:
            super().handle(*args, **{**options, "skip_checks": True})
            return
        with grants.as_owner():
            self._refuse_strangers()
            super().handle(*args, **{**options, "skip_checks": True})
            if todo := grants.apply():
                self.stderr.write(self.style.WARNING(todo))

    def _refuse_strangers(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_has_role(relowner, 'USAGE'), current_user FROM pg_class WHERE oid = to_regclass('django_migrations')"
            )
            found = cursor.fetchone()
        if found and not found[0]:
            raise CommandError(
                f'"{found[1]}" does not own the tables; set DATABASE_OWNER_URL to the role that does, for this command only.'
            )
