"""Moderation: what may go in, what may come out."""

from django.apps import AppConfig


class ModerationConfig(AppConfig):
    name = "moderation"
