"""Tenants: companies, their people, environments, keys, limits and providers."""

from django.apps import AppConfig


class TenantsConfig(AppConfig):
    name = "tenants"
