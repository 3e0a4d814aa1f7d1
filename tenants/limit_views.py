"""The console's pages about rate limits: everybody sees them, owners and admins add, change and remove them."""

from typing import Any

from django import forms
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_http_methods, require_POST

from aiplatform.lib.errors import ApiError
from tenants import access, keys, lookup, rate_limits
from tenants.access import Right
from tenants.models import ApiKey, Member, RateLimit

LABELS = {
    "rpm": "Requests a minute",
    "rpm_burst": "Burst of requests",
    "tpm": "Tokens a minute",
    "tpm_burst": "Burst of tokens",
    "concurrency": "Calls at once",
}
MODES = ((RateLimit.Mode.ENFORCE.value, "enforced"), (RateLimit.Mode.SHADOW.value, "shadow: only counts"))


class FiguresForm(forms.Form):
    """The figures and the mode of a limit; an empty field is no limit."""

    mode = forms.ChoiceField(label="Mode", choices=MODES, initial=RateLimit.Mode.ENFORCE.value)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, label in LABELS.items():
            shown = {
                "placeholder": "a minute's worth" if name in rate_limits.BURSTS else "no limit",
                "autocomplete": "off",
            }
            self.fields[name] = forms.IntegerField(
                label=label,
                required=False,
                min_value=1,
                max_value=rate_limits.MOST,
                widget=forms.NumberInput(attrs=shown),
            )

    @property
    def figures(self) -> dict[str, int | None]:
        return {name: self.cleaned_data[name] for name in rate_limits.FIGURES}

    def rows(self) -> list[list[forms.BoundField]]:
        """The fields as they stand beside each other: each rate, and what of it may come at once."""
        return [[self["rpm"], self["rpm_burst"]], [self["tpm"], self["tpm_burst"]], [self["concurrency"], self["mode"]]]


class NewForm(FiguresForm):
    """A new limit, and what it is on."""

    scope = forms.ChoiceField(label="On")
    end_user = forms.CharField(
        label="End user",
        required=False,
        max_length=rate_limits.LONGEST_END_USER,
        widget=forms.TextInput(attrs={"autocomplete": "off", "placeholder": "all together"}),
    )

    def __init__(self, *args: Any, member: Member, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        scope = self.fields["scope"]
        assert isinstance(scope, forms.ChoiceField)  # noqa: S101 - for the type checker
        scope.choices = _scopes(member)


@require_http_methods(["GET", "HEAD", "POST"])
@access.requires(Right.SPEND)
def listed(request: HttpRequest, member: Member) -> HttpResponse:
    """All limits; by POST a new one."""
    if request.method != "POST":
        return _list(request, member, NewForm(member=member, initial={"scope": _asked(request, member)}))
    _refuse_others(member)
    form = NewForm(request.POST, member=member)
    if form.is_valid():
        kind, _, name = form.cleaned_data["scope"].partition(":")
        _, environment, key = lookup.scope(
            str(member.tenant_id), name if kind == "environment" else None, name if kind == "key" else None
        )
        try:
            rate_limits.add(
                tenant=member.tenant,
                environment=environment,
                api_key=key,
                end_user=form.cleaned_data["end_user"],
                mode=form.cleaned_data["mode"],
                figures=form.figures,
            )
        except ApiError as error:
            form.add_error(None, error.message)
        else:
            return redirect("limits")
    return _list(request, member, form)


@require_http_methods(["GET", "HEAD", "POST"])
@access.requires(Right.LIMITS)
def one(request: HttpRequest, member: Member, limit_id: int) -> HttpResponse:
    """One limit's figures, to be changed."""
    limit = _limit(member, limit_id)
    initial = {name: getattr(limit, name) for name in (*rate_limits.FIGURES, "mode")}
    form = FiguresForm(request.POST if request.method == "POST" else None, initial=initial)
    if form.is_bound and form.is_valid():
        try:
            rate_limits.change(limit, figures=form.figures, mode=form.cleaned_data["mode"])
        except ApiError as error:
            form.add_error(None, error.message)
        else:
            return redirect("limits")
    shown = _limit(member, limit_id)  # as it is, whatever was refused
    return access.page(request, member, "tenants/limit.html", {"limit": _row(shown), "form": form})


@require_POST
@access.requires(Right.LIMITS)
def remove(_request: HttpRequest, member: Member, limit_id: int) -> HttpResponse:
    rate_limits.remove(_limit(member, limit_id))
    return redirect("limits")


def _list(request: HttpRequest, member: Member, form: NewForm) -> HttpResponse:
    found = rate_limits.listed(tenant=member.tenant)
    free = rate_limits.left(found)
    context = {
        "limits": [_row(limit, free.get(limit.pk, {})) for limit in found],
        "keys": [_key(key) for key in _keys(member)],
        "form": form,
    }
    return access.page(request, member, "tenants/limits.html", context)


def _row(limit: RateLimit, free: dict[str, int] | None = None) -> dict[str, Any]:
    """A limit as the table shows it: each rate with its burst and what is left of it."""
    return {
        "it": limit,
        "figures": [
            {
                "value": getattr(limit, rate),
                "burst": getattr(limit, f"{rate}_burst", None),
                "left": (free or {}).get(rate),
            }
            for rate in rate_limits.RATES
        ],
        "is_shadow": limit.mode == RateLimit.Mode.SHADOW,
    }


def _key(key: ApiKey) -> dict[str, Any]:
    """A key, and in words what it is bound to."""
    bound = {name: ", ".join(values) for name, values in keys.bindings_json(key).items() if values}
    return {"it": key, "bound": bound}


def _keys(member: Member) -> list[ApiKey]:
    its = ApiKey.objects.usable().filter(tenant=member.tenant).select_related("environment")
    return list(its.order_by("environment__created_at", "name", "created_at"))


def _scopes(member: Member) -> list[Any]:
    """What a limit may be on, as choices."""
    environments = [(f"environment:{it.pk}", it.name) for it in member.tenant.environments.order_by("created_at")]
    its_keys = [
        (f"key:{key.public_id}", f"{key.environment.name}, {key.name or key.public_id}") for key in _keys(member)
    ]
    whole = ("tenant:", f"all of {member.tenant.name}")
    return (
        [whole, ("Environments", environments), ("Keys", its_keys)]
        if its_keys
        else [whole, ("Environments", environments)]
    )


def _asked(request: HttpRequest, member: Member) -> str:
    """The scope that a link names by `?key=`; that of the tenant for a key that is not his."""
    wanted = f"key:{request.GET.get('key', '')}"
    return wanted if any(f"key:{key.public_id}" == wanted for key in _keys(member)) else "tenant:"


def _limit(member: Member, limit_id: int) -> RateLimit:
    try:
        return rate_limits.find(limit_id, tenant=member.tenant)
    except lookup.NotFound:
        raise Http404 from None


def _refuse_others(member: Member) -> None:
    if not access.may(member, Right.LIMITS):
        raise Http404
