"""All pages and the REST API; `/v1/*` is served beside Django (see `aiplatform.asgi`)."""

from django.urls import URLPattern, URLResolver

urlpatterns: list[URLPattern | URLResolver] = []
