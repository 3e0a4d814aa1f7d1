"""Tenants: companies, their people, environments, keys, limits and providers."""

from django.apps import AppConfig


class TenantsConfig(AppConfig):
    name = "tenants"

    def ready(self) -> None:
        from tenants import checks  # noqa: F401, PLC0415 - registers them
