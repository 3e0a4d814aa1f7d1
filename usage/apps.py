"""Usage: calls, prices, caps and the ledger."""

from django.apps import AppConfig


class UsageConfig(AppConfig):
    name = "usage"

    def ready(self) -> None:
        from usage import checks  # noqa: F401, PLC0415 - registers them
