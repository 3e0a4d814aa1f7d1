"""All pages and the REST API; `/v1/*` is served beside Django (see `aiplatform.asgi`)."""

from django.urls import URLPattern, URLResolver, include, path

urlpatterns: list[URLPattern | URLResolver] = [
    path("", include("tenants.urls")),
    path("", include("usage.urls")),
    path("api/", include("usage.api_urls")),
]
