"""Pages about people, rate limits and webhooks."""

from django.contrib.auth.views import LogoutView
from django.urls import path

from tenants import limit_views, views
from tenants.webhooks import views as webhooks

urlpatterns = [
    path("login", views.Login.as_view(), name="login"),
    path("logout", LogoutView.as_view(), name="logout"),
    path("tenant", views.switch, name="switch_tenant"),
    path("limits", limit_views.listed, name="limits"),
    path("limits/<int:limit_id>", limit_views.one, name="limit"),
    path("limits/<int:limit_id>/remove", limit_views.remove, name="limit_remove"),
    path("webhooks", webhooks.listed, name="webhooks"),
    path("webhooks/<uuid:endpoint_id>", webhooks.one, name="webhook"),
    path("webhooks/<uuid:endpoint_id>/<str:action>", webhooks.act, name="webhook_action"),
    path("webhooks/<uuid:endpoint_id>/deliveries/<uuid:delivery_id>/resend", webhooks.resend, name="webhook_resend"),
]
