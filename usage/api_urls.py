"""The REST API's resources, mounted at `/api/`."""

from django.urls import path

from usage import api, cache_api, caps_api, ledger_api, limits_api, near_api, webhooks_api

urlpatterns = [
    path("cache/near", near_api.NearMatches.as_view(), name="api-cache-near"),
    path("calls", api.Calls.as_view(), name="api-calls"),
    path("calls/<str:call_id>", api.OneCall.as_view(), name="api-call"),
    path("caps", caps_api.Caps.as_view(), name="api-caps"),
    path("caps/notices", caps_api.Notices.as_view(), name="api-cap-notices"),
    path("caps/<str:cap_id>", caps_api.OneCap.as_view(), name="api-cap"),
    path("caps/<str:cap_id>/raise", caps_api.Raise.as_view(), name="api-cap-raise"),
    path("credit", caps_api.Credit.as_view(), name="api-credit"),
    path("credit/<str:grant_id>", caps_api.Consumption.as_view(), name="api-credit-consumption"),
    path("environments/<str:environment>/cache", cache_api.EnvironmentCache.as_view(), name="api-environment-cache"),
    path("environments/<str:environment>/cache/purge", cache_api.Purge.as_view(), name="api-environment-cache-purge"),
    path("environments/<str:environment>/suspension", caps_api.Switch.as_view(), name="api-environment-suspension"),
    path("keys/<str:key>/suspension", caps_api.Switch.as_view(), name="api-key-suspension"),
    path("ledger/seals", ledger_api.Seals.as_view(), name="api-ledger-seals"),
    path("ledger/seals/<str:n>/entries", ledger_api.SealEntries.as_view(), name="api-ledger-seal-entries"),
    path("limits", limits_api.Limits.as_view(), name="api-limits"),
    path("limits/<str:limit_id>", limits_api.OneLimit.as_view(), name="api-limit"),
    path("webhooks", webhooks_api.Webhooks.as_view(), name="api-webhooks"),
    path("webhooks/<str:endpoint_id>", webhooks_api.OneWebhook.as_view(), name="api-webhook"),
    path("webhooks/<str:endpoint_id>/rotate", webhooks_api.Rotation.as_view(), name="api-webhook-rotate"),
    path("webhooks/<str:endpoint_id>/ping", webhooks_api.Ping.as_view(), name="api-webhook-ping"),
    path("webhooks/<str:endpoint_id>/deliveries", webhooks_api.Deliveries.as_view(), name="api-webhook-deliveries"),
    path(
        "webhooks/<str:endpoint_id>/deliveries/<str:delivery_id>",
        webhooks_api.OneDelivery.as_view(),
        name="api-webhook-delivery",
    ),
    path(
        "webhooks/<str:endpoint_id>/deliveries/<str:delivery_id>/resend",
        webhooks_api.Resending.as_view(),
        name="api-webhook-resend",
    ),
    path("<path:_path>", api.Nowhere.as_view()),
]
