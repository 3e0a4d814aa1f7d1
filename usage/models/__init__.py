"""Calls and their attempts, prices, spending caps and the ledger. Only `usage.ledger` writes money."""

from usage.models.background import BackgroundCall
from usage.models.calls import Attempt, Call, CallPayload, CallQuerySet, IdempotencyKey
from usage.models.caps import CapBucket, CapNotice, SpendingCap
from usage.models.credit import CreditConsumption, CreditGrant
from usage.models.ledger import LedgerEntry
from usage.models.objects import ProviderObject
from usage.models.prices import (
    Catalogue,
    FrozenTariff,
    Plan,
    PlanAssignment,
    Price,
    PriceComponent,
    PriceDraft,
    PriceFix,
    Tariff,
    Variant,
)
from usage.models.processes import ProcessLease
from usage.models.seals import HOUSE, AuditMark, AuditRun, LedgerSeal

__all__ = [
    "HOUSE",
    "Attempt",
    "AuditMark",
    "AuditRun",
    "BackgroundCall",
    "Call",
    "CallPayload",
    "CallQuerySet",
    "CapBucket",
    "CapNotice",
    "Catalogue",
    "CreditConsumption",
    "CreditGrant",
    "FrozenTariff",
    "IdempotencyKey",
    "LedgerEntry",
    "LedgerSeal",
    "Plan",
    "PlanAssignment",
    "Price",
    "PriceComponent",
    "PriceDraft",
    "PriceFix",
    "ProcessLease",
    "ProviderObject",
    "SpendingCap",
    "Tariff",
    "Variant",
]
