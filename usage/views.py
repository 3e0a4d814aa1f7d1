"""The console's pages about calls and what they cost."""

import uuid
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.db.models import BinaryField, Count, F, Func, IntegerField, Q, Sum
from django.http import Http404, HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_safe

from aiplatform.lib import money
from aiplatform.lib.ids import call_name
from tenants import access
from tenants.access import Right
from tenants.models import ApiKey, Member, Tenant
from usage import cap_notices, charts, credit, filters, receipts, reports, standings, transcripts
from usage.models import Attempt, Call, CallPayload, CallQuerySet, LedgerEntry, Price
from usage.timeline import timeline

LATEST = 8


@require_safe
@access.requires(Right.SPEND)
def overview(request: HttpRequest, member: Member) -> HttpResponse:
    tenant, now = member.tenant, timezone.now()
    month = reports.month(tenant_id=tenant.pk, now=now)
    spend = reports.spend_by_day(
        tenant_id=tenant.pk, zone=tenant.time_zone, starts_at=month.starts_at, ends_at=month.ends_at
    )
    first, last = timezone.localdate(month.starts_at), timezone.localdate(month.ends_at - timedelta(seconds=1))
    latest = list(_of(tenant)[:LATEST])
    context = {
        "now": now,
        "month": month,
        "this_month": filters.when("month", month.starts_at),
        "cap": reports.tenant_cap(tenant_id=tenant.pk, now=now),
        "caps": reports.caps(tenant_id=tenant.pk, now=now),
        "notices": cap_notices.standing(tenant_id=tenant.pk, now=now),
        "credit": credit.balance(tenant_id=tenant.pk),
        "cache_saving_nano": reports.cache_saving(
            tenant_id=tenant.pk, starts_at=month.starts_at, ends_at=month.ends_at
        ),
        "answers_saved": reports.answers_saved(tenant_id=tenant.pk, starts_at=month.starts_at, ends_at=month.ends_at),
        "chart": charts.by_day(spend, first=first, last=last),
        "today": timezone.localdate(now),
        "hour": reports.traffic(tenant_id=tenant.pk, since=now - timedelta(hours=1)),
        "calls": latest,
        "tries": _tries(latest),
    }
    return access.page(
        request, member, "usage/overview.html", context | ({} if latest else _first_call(request, tenant))
    )


@require_safe
@access.requires(Right.SPEND)
def calls(request: HttpRequest, member: Member) -> HttpResponse:
    tenant, now = member.tenant, timezone.now()
    asked = filters.CallFilter(request.GET, tenant=tenant, now=now)
    found = asked.calls()
    shown = filters.page(found, before=request.GET.get("before", ""), after=request.GET.get("after", ""))
    context = {
        "now": now,
        "filter": asked,
        "page": shown,
        "calls": shown.calls,
        "tries": _tries(shown.calls),
        "models": sorted(set(_of(tenant).values_list("model", flat=True)[:500])),
        "newer": asked.query(after=call_name(shown.newer)) if shown.newer else "",
        "older": asked.query(before=call_name(shown.older)) if shown.older else "",
        "without_key": asked.query(key=""),
        # Only a span of time bounds the work of counting.
        "sums": _sums(found) if asked.is_valid() and asked.cleaned_data["when"] else None,
    }
    if not shown.calls and not _of(tenant).exists():
        context |= _first_call(request, tenant)
    return access.page(request, member, "usage/calls.html", context)


@require_safe
@access.requires(Right.SPEND)
def call(request: HttpRequest, member: Member, call_id: uuid.UUID) -> HttpResponse:
    try:
        receipt = receipts.receipt(call_id, tenant=member.tenant_id)
    except receipts.CallNotFound:
        raise Http404 from None
    one = _of(member.tenant).select_related("price").get(pk=call_id)
    attempts = list(Attempt.objects.filter(call_id=one.pk).order_by("n"))
    may_read = access.may(member, Right.CONTENT)
    context = {
        "call": one,
        "lines": receipt["lines"],
        "agrees": _agrees(one, receipt),
        "entry_numbers": [entry["number"] for entry in receipt["ledger"] if entry["kind"] == LedgerEntry.Kind.CHARGE],
        "caps": standings.standings_of(one.bucket_ids, tenant_id=one.tenant_id, now=timezone.now()),
        "attempts": attempts,
        "steps": timeline(one, attempts),
        "may_read": may_read,
        "said": _said(one) if may_read else {},
        "cache_saving_nano": receipts.cache_saving_nano(one),
        "prompt_cache": receipt["prompt_cache"],
        "given_again": receipt["given_again"],
    }
    return access.page(request, member, "usage/call.html", context)


def _of(tenant: Tenant) -> CallQuerySet:
    return Call.objects.filter(tenant=tenant).select_related("environment", "api_key").order_by("-id")


def _tries(shown: Iterable[Call]) -> Counter[uuid.UUID]:
    return Counter(Attempt.objects.filter(call_id__in=[one.pk for one in shown]).values_list("call_id", flat=True))


def _sums(found: CallQuerySet) -> dict[str, Any]:
    return found.aggregate(
        calls=Count("id"), charged_nano=Sum("charged_nano"), held_nano=Sum("held_nano", filter=filters.LIVE)
    )


def _agrees(one: Call, receipt: dict[str, Any]) -> bool:
    """Whether lines, charge and ledger say the same."""
    booked = [Decimal(entry["usd"]) for entry in receipt["ledger"] if entry["kind"] == LedgerEntry.Kind.CHARGE]
    lines = [Decimal(line["usd"]) for line in receipt["lines"] if line["item"] != "difference"]
    return sum(lines) == sum(booked) == Decimal(one.charged_nano) / money.NANO


def _said(one: Call) -> dict[str, transcripts.Transcript]:
    """Prompt and response by kind, as far as they are stored; of a call in the background, how it ended; of one that got
    another's answer, what that one had asked and got.
    """
    payloads = (
        CallPayload.objects.filter(call_id=one.cached_from or one.pk)
        .order_by("kind")
        .values_list(
            "kind",
            Func(
                F("body"),
                template=f"substr(%(expressions)s, 1, {transcripts.READABLE_BYTES})",
                output_field=BinaryField(),
            ),
            Func(F("body"), function="octet_length", output_field=IntegerField()),
        )
    )
    names = {CallPayload.Kind.RESULT.value: CallPayload.Kind.RESPONSE.value}
    return {names.get(kind, kind): transcripts.read(bytes(body), size) for kind, body, size in payloads}


def _first_call(request: HttpRequest, tenant: Tenant) -> dict[str, Any]:
    """What a first call from the command line takes: the address, the beginning of a key, a model that has a price."""
    now = timezone.now()
    priced = Price.objects.filter(Q(valid_to=None) | Q(valid_to__gt=now), valid_from__lte=now).exclude(model="*")
    key = ApiKey.objects.usable().filter(tenant=tenant).select_related("environment").order_by("created_at").first()
    return {
        "first_call": {
            "url": request.build_absolute_uri("/v1/chat/completions"),
            "key": key,
            "model": priced.order_by("-valid_from", "model").values_list("model", flat=True).first() or "sandbox",
        }
    }
