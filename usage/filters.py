"""Which calls a list shows, all of it said by the URL."""

import re
import uuid
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any, cast
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from django import forms
from django.db import models
from django.db.models import Func, Q, Value
from django.utils import timezone

from aiplatform.lib.ids import CALL_PREFIX, call_id
from tenants.models import ApiKey, Environment, Tenant
from usage.models import Call, CallQuerySet

HOUR = "hour"
PAGE = 50
EARLIEST, LATEST = 1971, 9000  # years; an id says a time after 1970
LIVE = Q(state=Call.State.HELD) | Q(state__in=[Call.State.INFLIGHT, Call.State.UNKNOWN])  # two partial indexes
STATES: dict[str, tuple[str, Q]] = {
    "live": ("Holding money", LIVE),
    "held": ("Held, not sent yet", Q(state=Call.State.HELD)),
    "inflight": ("In flight", Q(state=Call.State.INFLIGHT)),
    "unknown": ("Outcome unknown", Q(state=Call.State.UNKNOWN)),
    "settled": ("Settled", Q(state=Call.State.SETTLED)),
    "void": ("Void", Q(state=Call.State.VOID)),
    "failed": ("Failed (status 400 and up)", Q(status__gte=400)),
}


class CallFilter(forms.Form):
    """Reads and checks the query string."""

    environment = forms.ModelChoiceField(
        Environment.objects.none(), to_field_name="name", required=False, empty_label="All"
    )
    state = forms.ChoiceField(
        choices=[("", "All"), *((name, label) for name, (label, _) in STATES.items())], required=False
    )
    model = forms.CharField(max_length=200, required=False, widget=forms.TextInput({"list": "models"}))
    end_user = forms.CharField(max_length=256, required=False)
    when = forms.CharField(max_length=12, required=False)
    key = forms.ModelChoiceField(
        ApiKey.objects.none(), to_field_name="public_id", required=False, widget=forms.HiddenInput
    )

    def __init__(self, data: Any, *, tenant: Tenant, now: datetime) -> None:
        super().__init__(data)
        self.tenant = tenant
        self.now = now
        self._offer("environment", tenant.environments.order_by("created_at"))
        self._offer("key", tenant.api_keys.select_related("environment"))
        self.fields["when"].widget = forms.Select(choices=self._when_choices())

    def clean_when(self) -> "Span | None":
        value = self.cleaned_data["when"]
        try:
            return span(value, zone=ZoneInfo(self.tenant.time_zone), now=self.now) if value else None
        except (ValueError, OverflowError):
            raise forms.ValidationError("Give hour, a day 2026-11-23, a week 2026-W48 or a month 2026-11.") from None

    def calls(self) -> CallQuerySet:
        """The tenant's calls that match; none where the query makes no sense."""
        found = Call.objects.filter(tenant=self.tenant)
        if not self.is_valid():
            return found.none()
        asked = self.cleaned_data
        if asked["environment"]:
            found = found.filter(environment=asked["environment"])
        if asked["key"]:
            found = found.filter(api_key=asked["key"])
        if asked["model"]:
            found = found.filter(model=asked["model"])
        if asked["end_user"]:
            found = found.filter(end_user=asked["end_user"])
        if asked["state"]:
            found = found.filter(STATES[asked["state"]][1])
        return asked["when"].apply(found) if asked["when"] else found

    @property
    def is_narrowed(self) -> bool:
        return any(self.data.get(name) for name in self.fields)

    def query(self, **changes: str) -> str:
        """The query string of this filter with some changes, for links."""
        asked = {name: self.data.get(name, "") for name in self.fields} | changes
        return urlencode({name: value for name, value in asked.items() if value})

    def _offer(self, name: str, theirs: models.QuerySet[Any]) -> None:
        cast("forms.ModelChoiceField[Any]", self.fields[name]).queryset = theirs

    def _when_choices(self) -> list[tuple[str, str]]:
        today = self.now.astimezone(ZoneInfo(self.tenant.time_zone)).date()
        yesterday = today - timedelta(days=1)
        last_month = today.replace(day=1) - timedelta(days=1)
        choices = [
            ("", "Any time"),
            (HOUR, "Last hour"),
            (f"{today}", f"Today, {today:%-d %b}"),
            (f"{yesterday}", f"Yesterday, {yesterday:%-d %b}"),
            (f"{today:%G-W%V}", "This week"),
            (f"{today:%Y-%m}", f"{today:%B %Y}"),
            (f"{last_month:%Y-%m}", f"{last_month:%B %Y}"),
        ]
        given = str(self.data.get("when", ""))
        return choices if given in dict(choices) else [*choices, (given, given)]


@dataclass(frozen=True, slots=True)
class Span:
    """From an instant to before another; the end is open where it is None."""

    starts_at: datetime
    ends_at: datetime | None

    def apply(self, calls: CallQuerySet) -> CallQuerySet:
        # Ids are made by the web process's clock just before the database's own: the minute covers what lies between.
        minute = timedelta(minutes=1)
        found = calls.filter(admitted_at__gte=self.starts_at, id__gte=_uuid_at(self.starts_at - minute))
        if self.ends_at is None:
            return found
        return found.filter(admitted_at__lt=self.ends_at, id__lt=_uuid_at(self.ends_at + minute))


def span(text: str, *, zone: ZoneInfo, now: datetime) -> Span:
    """Of `hour`, `2026-11-23`, `2026-W48` or `2026-11`, in the zone's calendar; ValueError for anything else."""
    if text == HOUR:
        return Span(now - timedelta(hours=1), None)
    if re.fullmatch(r"\d{4}-\d{2}", text, re.ASCII):
        first = date.fromisoformat(f"{text}-01")
        last = (first + timedelta(days=31)).replace(day=1)
    elif re.fullmatch(r"\d{4}-W\d{2}", text, re.ASCII):
        first = date.fromisoformat(f"{text}-1")
        last = first + timedelta(days=7)
    else:
        first = date.fromisoformat(text)
        last = first + timedelta(days=1)
    if not EARLIEST <= first.year <= LATEST:
        raise ValueError(f"{text} lies beyond what ids can say")
    return Span(datetime.combine(first, time(), zone), datetime.combine(last, time(), zone))


def when(period: str, starts_at: datetime) -> str:
    """The `when` that spans a cap's period; empty for a lifetime."""
    forms_of = {"day": "%Y-%m-%d", "week": "%G-W%V", "month": "%Y-%m"}
    return timezone.localtime(starts_at).strftime(forms_of[period]) if period in forms_of else ""


@dataclass(frozen=True, slots=True)
class Page:
    """Calls in order, newest first, and where the neighbouring pages begin."""

    calls: list[Call]
    newer: uuid.UUID | None
    older: uuid.UUID | None


def page(found: CallQuerySet, *, before: str, after: str) -> Page:
    """At most fifty calls next to the named one; a name that is none counts as the beginning."""
    cursor = _cursor(before) or _cursor(after)
    backwards = _cursor(before) is None and cursor is not None
    found = found.select_related("environment", "api_key")
    if cursor:
        found = found.filter(id__gt=cursor) if backwards else found.filter(id__lt=cursor)
    rows = list(found.order_by("id" if backwards else "-id")[: PAGE + 1])
    more, rows = len(rows) > PAGE, rows[:PAGE]
    if backwards:
        rows.reverse()
    if not rows:
        return Page([], None, None)
    return Page(
        rows,
        rows[0].id if (more if backwards else cursor) else None,
        rows[-1].id if (cursor if backwards else more) else None,
    )


def _cursor(name: str) -> uuid.UUID | None:
    try:
        return call_id(name) if name.startswith(CALL_PREFIX) else None
    except ValueError:
        return None


def _uuid_at(moment: datetime) -> Func:
    return Func(Value(moment), function="usage_uuid_at", output_field=models.UUIDField())
