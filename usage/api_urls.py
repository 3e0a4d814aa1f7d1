"""The REST API's resources, mounted at `/api/`."""

from django.urls import path

from usage import api, ledger_api

urlpatterns = [
    path("calls", api.Calls.as_view(), name="api-calls"),
    path("calls/<str:call_id>", api.OneCall.as_view(), name="api-call"),
    path("caps", api.Caps.as_view(), name="api-caps"),
    path("ledger/seals", ledger_api.Seals.as_view(), name="api-ledger-seals"),
    path("ledger/seals/<str:n>/entries", ledger_api.SealEntries.as_view(), name="api-ledger-seal-entries"),
    path("<path:_path>", api.Nowhere.as_view()),
]
