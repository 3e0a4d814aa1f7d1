"""Logging in and out, and choosing the tenant to look at."""

from typing import Any

from django import forms
from django.conf import settings
from django.contrib.auth import views
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import AuthenticationForm
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_POST

from tenants import access


class LoginForm(AuthenticationForm):
    error_messages = {
        "invalid_login": "E-mail and password do not match. Mind capital letters in the password.",
        "inactive": "This account is closed.",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["username"].label = "E-mail"
        self.fields["username"].widget = forms.EmailInput(
            attrs={"autofocus": True, "autocomplete": "username", "maxlength": 254}
        )


class Login(views.LoginView):
    template_name = "tenants/login.html"
    authentication_form = LoginForm
    redirect_authenticated_user = True


@login_required
@require_POST
def switch(request: HttpRequest) -> HttpResponse:
    access.choose(request, request.POST.get("tenant", ""))
    return redirect(settings.LOGIN_REDIRECT_URL)
