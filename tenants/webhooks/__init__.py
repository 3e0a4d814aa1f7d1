"""Webhooks: endpoints that tenants register, and the outbox from which signed events reach them (docs/webhooks.md)."""
