"""Pages about calls and what they cost."""

import uuid

from django.urls import path, register_converter

from aiplatform.lib.ids import call_id, call_name
from usage import near_views, views


class CallName:
    regex = "call_[0-9a-f-]{36}"

    def to_python(self, value: str) -> uuid.UUID:
        return call_id(value)

    def to_url(self, value: uuid.UUID) -> str:
        return call_name(value)


register_converter(CallName, "call")

app_name = "usage"
urlpatterns = [
    path("", views.overview, name="overview"),
    path("near", near_views.listed, name="near"),
    path("calls", views.calls, name="calls"),
    path("calls/<call:call_id>", views.call, name="call"),
]
