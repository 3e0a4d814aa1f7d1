"""Usage: calls, prices, caps and the ledger."""

from django.apps import AppConfig


class UsageConfig(AppConfig):
    name = "usage"
