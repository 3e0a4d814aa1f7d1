"""Pages about people."""

from django.contrib.auth.views import LogoutView
from django.urls import path

from tenants import views

urlpatterns = [
    path("login", views.Login.as_view(), name="login"),
    path("logout", LogoutView.as_view(), name="logout"),
    path("tenant", views.switch, name="switch_tenant"),
]
