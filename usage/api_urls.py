"""The REST API's resources, mounted at `/api/`."""

from django.urls import path

from usage import api

urlpatterns = [
    path("calls", api.Calls.as_view(), name="api-calls"),
    path("calls/<str:call_id>", api.OneCall.as_view(), name="api-call"),
    path("caps", api.Caps.as_view(), name="api-caps"),
    path("<path:_path>", api.Nowhere.as_view()),
]
