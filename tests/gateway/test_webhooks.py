"""Webhooks from the event to the receiver: on committed rows, by the process's own postman, over real sockets."""

import json
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone
from standardwebhooks.webhooks import WebhookVerificationError

from aiplatform.gateway import recovery, webhooks
from aiplatform.lib import postgres, redis
from tenants.models import Environment, Member, User, WebhookAttempt, WebhookDelivery, WebhookEndpoint, WebhookEvent
from tenants.webhooks import endpoints, notices, outbox, signing
from tests.fakes.mailbox import Mailbox
from tests.fakes.receiver import Receiver
from tests.usage.book import Book
from tests.waiting import wait_for
from usage import caps, webhook_events
from usage.ledger import Ending

ANSWER = {"id": "chatcmpl-1", "choices": [{"message": {"content": "hello\u2028 <script>"}}]}


@pytest.fixture
def receiver(settings: Any) -> Iterator[Receiver]:
    settings.WEBHOOK_ALLOWED_NETWORKS, settings.WEBHOOK_PORTS = ["127.0.0.0/8"], ["1-65535"]
    settings.WEBHOOK_PLAIN_HTTP = True
    settings.WEBHOOK_RETRY_SECONDS = 0.05
    settings.WEBHOOK_TIMEOUT_SECONDS = 2
    with Receiver() as made:
        yield made


@pytest.fixture
def book(committed_db: None) -> Book:
    WebhookEndpoint.objects.all().delete()  # what other tests left
    return Book()


@pytest.fixture
def postman(receiver: Receiver, book: Book) -> Iterator[webhooks.Postman]:
    made = webhooks.Postman()
    made.start()
    yield made
    receiver.let_go.set()
    assert made.stop(5)


def registered(book: Book, receiver: Receiver, path: str = "/", **changes: Any) -> tuple[WebhookEndpoint, str]:
    return endpoints.register(tenant=book.tenant, **{"environment": None, "url": receiver.url(path), **changes})


def ended(book: Book, *, detached: bool = True, body: bytes | None = None, **ending: Any) -> uuid.UUID:
    """A call that has ended, by the money functions."""
    call = book.held(1000)
    postgres.run("UPDATE usage_call SET detached = %s WHERE id = %s", [detached, call])
    book.claim(call)
    fields = {"state": "settled", "status": 200, "cost_nano": 700, "list_nano": 700, "evidence": "provider"}
    book.settle(
        Ending(
            call,
            **{**fields, **ending},
            headers={"content-type": "application/json"},
            body=body or json.dumps(ANSWER).encode(),
        )
    )
    return call


def send(postman: webhooks.Postman) -> None:
    while webhook_events.write():
        pass
    postman.ring()


def deliveries(endpoint: WebhookEndpoint) -> list[WebhookDelivery]:
    return list(WebhookDelivery.objects.filter(endpoint=endpoint).select_related("event").order_by("id"))


def until_ended(postman: webhooks.Postman, endpoint: WebhookEndpoint, seconds: float = 15) -> list[WebhookDelivery]:
    def all_ended() -> bool:
        send(postman)
        found = deliveries(endpoint)
        return bool(found) and all(it.state != "pending" for it in found)

    wait_for(all_ended, seconds)
    return deliveries(endpoint)


def test_an_ended_call_arrives_signed_with_its_answer_its_cost_and_its_address(
    book: Book, receiver: Receiver, postman: webhooks.Postman, settings: Any
) -> None:
    settings.PUBLIC_URL = "https://ai.example.com/"
    endpoint, secret = registered(book, receiver)
    call = ended(book)
    (delivery,) = until_ended(postman, endpoint)
    (message,) = receiver.messages
    said = message.verified(secret)
    assert (said["type"], said["data"]["id"], said["data"]["cost_usd"]) == (
        "call.settled",
        f"call_{call}",
        "0.000000700",
    )
    assert said["data"]["response"] == {"content_type": "application/json", "body": ANSWER}
    assert said["data"]["url"] == f"https://ai.example.com/v1/calls/call_{call}"
    assert (said["data"]["state"], said["data"]["status"], said["data"]["environment"]) == ("settled", 200, "prod")
    assert message.id == f"evt_{delivery.event_id}" == outbox.as_json(delivery)["webhook_id"]
    assert message.headers["content-type"] == "application/json"
    assert (delivery.state, delivery.tries) == ("delivered", 1)
    (attempt,) = outbox.attempts_json(delivery)
    assert (attempt["status"], attempt["error"], attempt["answer"]) == (200, None, "thanks")
    with pytest.raises(WebhookVerificationError):
        message.verified(signing.new_secret())
    with pytest.raises(WebhookVerificationError):
        type(message)(message.path, {**message.headers, "webhook-id": "evt_x"}, message.body, 0).verified(secret)


def test_the_event_is_there_with_the_settlement_and_not_without_it(book: Book, receiver: Receiver) -> None:
    registered(book, receiver)
    call = book.held(1000)
    postgres.run("UPDATE usage_call SET detached = true WHERE id = %s", [call])
    book.claim(call)
    events = WebhookEvent.objects.filter(subject=f"call_{call}")
    assert not events.exists()
    book.settle(Ending(call, "unknown", 502, "outcome_unknown"))
    assert [it.type for it in events] == ["call.failed"]
    postgres.run("UPDATE usage_call SET state = 'inflight' WHERE id = %s", [call])
    book.settle(Ending(call, "void", 502, "outcome_unknown"))
    assert [it.type for it in events] == ["call.failed"], "once"


def test_the_sweeper_rings_for_webhooks_of_calls_that_it_ends_and_nobody_waits_for(
    book: Book, receiver: Receiver
) -> None:
    registered(book, receiver)
    rung = []
    for detached in (False, True):
        call = book.held(1000)
        postgres.run("UPDATE usage_call SET detached = %s WHERE id = %s", [detached, call])
        before = redis.client().llen("aip:webhooks")
        recovery.void_late(call)
        rung.append(redis.client().llen("aip:webhooks") - before)
    assert rung == [0, 1]


@pytest.mark.parametrize(
    ("ending", "event_type", "cost"),
    [
        ({}, "call.settled", "0.000000700"),
        ({"error_code": "stream_broken"}, "call.failed", "0.000000700"),
        ({"state": "void", "status": 503, "error_code": "not_executed"}, "call.failed", "0.000000000"),
        ({"state": "unknown", "status": 502, "error_code": "outcome_unknown"}, "call.failed", None),
    ],
)
def test_what_is_no_answer_is_told_as_failed(
    book: Book, receiver: Receiver, ending: dict[str, Any], event_type: str, cost: str | None
) -> None:
    registered(book, receiver)
    call = ended(book, **ending)
    webhook_events.write()
    (event,) = WebhookEvent.objects.filter(subject=f"call_{call}")
    said = json.loads(event.body or "")
    assert (said["type"], said["data"]["cost_usd"], said["data"]["error"]) == (
        event_type, cost, ending.get("error_code"),
    )  # fmt: skip


def test_calls_that_somebody_waits_for_and_tenants_without_endpoints_leave_no_event(
    book: Book, receiver: Receiver
) -> None:
    before = ended(book)
    endpoint, _ = registered(book, receiver)
    other = Environment.objects.create(tenant=book.tenant, name="dev", kind="dev")
    registered(book, receiver, "/dev", environment=other)
    attached = ended(book, detached=False)
    rival = ended(Book())
    subjects = [f"call_{it}" for it in (before, attached, rival)]
    assert not WebhookEvent.objects.filter(subject__in=subjects).exists()
    ended(book)
    webhook_events.write()
    assert [it.endpoint_id for it in WebhookDelivery.objects.filter(tenant_id=book.tenant.pk)] == [endpoint.pk]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"x" * (64 * 1024), {"content_type": "application/json", "body": "x" * (64 * 1024)}),
        (b"x" * (64 * 1024 + 1), None),
        (b"data: {}\n\n", {"content_type": "application/json", "body": "data: {}\n\n"}),
        (b"\xff\xfe\x00", None),
        (b'{"a": "\\ud800"}', {"content_type": "application/json", "body": '{"a": "\\ud800"}'}),
        (b"a\0b", {"content_type": "application/json", "body": "a\0b"}),
        (b"[" * 60_000, {"content_type": "application/json", "body": "[" * 60_000}),
    ],
)
def test_an_answer_above_64_kib_or_that_is_no_text_is_left_to_its_address(
    book: Book, receiver: Receiver, body: bytes, told: Any
) -> None:
    registered(book, receiver)
    call = ended(book, body=body)
    webhook_events.write()
    said = json.loads(WebhookEvent.objects.get(subject=f"call_{call}").body or "")
    assert said["data"]["response"] == told
    assert said["data"]["response_bytes"] == len(body)
    assert said["data"]["url"] == f"/v1/calls/call_{call}"


def test_a_threshold_of_a_cap_is_told_once_to_those_who_want_it(
    book: Book, receiver: Receiver, postman: webhooks.Postman
) -> None:
    wants, secret = registered(book, receiver, "/caps", event_types=["cap.threshold_reached"])
    calls_only, _ = registered(book, receiver, "/calls", event_types=["call.settled"])
    caps.set_cap(tenant=book.tenant, period="month", limit_nano=1000, thresholds=[50])
    book.spend(600)
    until_ended(postman, wants)
    (message,) = receiver.messages
    said = message.verified(secret)["data"]
    assert (message.path, said["percent"], said["spent_usd"], said["limit_usd"]) == (
        "/caps", 50, "0.000000600", "0.000001000",
    )  # fmt: skip
    assert deliveries(calls_only) == []


def test_an_event_of_a_transaction_that_is_rolled_back_was_never_there(book: Book, receiver: Receiver) -> None:
    endpoint, _ = registered(book, receiver)
    told: dict[str, Any] = {"tenant": book.tenant, "event_type": "ping", "data": {"n": 1}}
    with transaction.atomic():
        assert outbox.publish(subject="invoice_1x", **told) == 1
        transaction.set_rollback(True)
    assert deliveries(endpoint) == []
    subject = f"invoice_{uuid.uuid4()}"
    assert [outbox.publish(subject=subject, **told) for _ in range(2)] == [1, 0], "once for a type and a subject"


def test_a_receiver_that_fails_is_tried_again_with_the_same_id_and_ever_longer_waits(
    book: Book, receiver: Receiver, postman: webhooks.Postman
) -> None:
    endpoint, secret = registered(book, receiver)
    receiver.statuses["/"] = [500, 404, 302, 429]
    ended(book)
    (delivery,) = until_ended(postman, endpoint)
    assert (delivery.state, delivery.tries) == ("delivered", 5)
    assert len({message.id for message in receiver.messages}) == 1
    assert len({message.body for message in receiver.messages}) == 1
    assert all(message.verified(secret) for message in receiver.messages)
    assert [it["status"] for it in outbox.attempts_json(delivery)] == [500, 404, 302, 429, 200]
    waits = [b.at - a.at for a, b in zip(receiver.messages, receiver.messages[1:], strict=False)]
    for n, waited in enumerate(waits):
        assert waited >= 0.05 * 3**n * 0.75
    endpoint.refresh_from_db()
    assert (endpoint.is_enabled, endpoint.failing_since) == (True, None)


def test_the_schedule_is_what_the_documents_say(settings: Any) -> None:
    settings.WEBHOOK_RETRY_SECONDS = 5
    assert [outbox.wait_seconds(n, chance=0.5) for n in range(1, 11)] == [
        5, 15, 45, 135, 405, 1215, 3645, 10935, 28800, 28800,
    ]  # fmt: skip
    assert outbox.wait_seconds(1, chance=0) == 3.75
    assert outbox.wait_seconds(10**6, chance=0.999) == pytest.approx(35985.6)
    for asked, waits in {"120": 120, "1000000": 3600, "-1": 5, "nan": 5, "1e9": 5, "٣٤": 5, "": 5, "2": 5}.items():
        assert outbox.wait_seconds(1, asked, chance=0.5) == waits, asked


def test_what_fails_for_days_is_given_up_disables_the_endpoint_and_is_mailed(
    book: Book, receiver: Receiver, postman: webhooks.Postman, settings: Any
) -> None:
    settings.WEBHOOK_GIVE_UP_SECONDS = 2
    for role in Member.Role:
        user = User.objects.create(email=f"{role}-{uuid.uuid4().hex[:8]}@example.com")
        Member.objects.create(tenant=book.tenant, user=user, role=role)
    endpoint, _ = registered(book, receiver)
    receiver.statuses["/"] = [500] * 100
    ended(book)
    (delivery,) = until_ended(postman, endpoint)
    assert delivery.state == "failed"
    assert delivery.ended_at is not None
    assert delivery.ended_at - delivery.window_from >= timedelta(seconds=2)
    endpoint.refresh_from_db()
    assert (endpoint.is_enabled, endpoint.disabled_why) == (False, "failing")
    with Mailbox() as box:
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", box.port
        assert (notices.tell_disabled(), notices.tell_disabled()) == (1, 0)
    (mail,) = box.messages
    assert sorted(it.partition("-")[0].strip() for it in str(mail["to"]).split(",")) == ["admin", "developer", "owner"]
    assert endpoint.url in mail.get_content()
    ended(book)
    webhook_events.write()
    assert len(deliveries(endpoint)) == 1, "it is told of nothing more"
    with pytest.raises(outbox.EndpointDisabled):
        outbox.resend(delivery)
    endpoints.change(endpoint, is_enabled=True)
    receiver.statuses["/"] = []
    outbox.resend(delivery)
    (delivery,) = until_ended(postman, endpoint)
    assert delivery.state == "delivered"


def test_one_message_that_is_given_up_disables_no_endpoint_that_takes_others(
    book: Book, receiver: Receiver, postman: webhooks.Postman, settings: Any
) -> None:
    settings.WEBHOOK_GIVE_UP_SECONDS = 1
    endpoint, _ = registered(book, receiver)
    receiver.statuses["/"] = [500]
    ended(book)
    send(postman)
    wait_for(lambda: deliveries(endpoint)[0].tries == 1 and deliveries(endpoint)[0].claim is None)
    stuck = deliveries(endpoint)[0]
    WebhookDelivery.objects.filter(pk=stuck.pk).update(next_at=timezone.now() + timedelta(seconds=3))
    outbox.ping(endpoint)
    send(postman)
    wait_for(lambda: deliveries(endpoint)[1].state == "delivered")
    receiver.statuses["/"] = [500]
    ago = timezone.now() - timedelta(minutes=1)
    WebhookAttempt.objects.filter(delivery=stuck).update(started_at=ago, ended_at=ago)
    WebhookDelivery.objects.filter(pk=stuck.pk).update(next_at=timezone.now(), window_from=ago)
    send(postman)
    wait_for(lambda: deliveries(endpoint)[0].state == "failed")
    endpoint.refresh_from_db()
    assert (endpoint.is_enabled, endpoint.failing_since is not None) == (True, True)


def test_410_disables_the_endpoint_at_once(book: Book, receiver: Receiver, postman: webhooks.Postman) -> None:
    endpoint, _ = registered(book, receiver)
    receiver.statuses["/"] = [410]
    ended(book)
    (delivery,) = until_ended(postman, endpoint)
    endpoint.refresh_from_db()
    assert (delivery.state, delivery.tries, endpoint.is_enabled, endpoint.disabled_why) == ("failed", 1, False, "gone")
    assert endpoint.notice_due_at is not None


def test_49_endpoints_do_not_wait_for_the_one_that_hangs(
    book: Book, receiver: Receiver, postman: webhooks.Postman, settings: Any
) -> None:
    settings.WEBHOOK_TIMEOUT_SECONDS = 8
    made = [registered(book, receiver, f"/{n}")[0] for n in range(50)]
    receiver.hanging = {"/17"}
    calls = [ended(book) for _ in range(6)]
    send(postman)
    others = [f"/{n}" for n in range(50) if n != 17]
    wait_for(lambda: all(len(receiver.at(path)) == len(calls) for path in others), 7)
    assert receiver.most_at_once["/17"] <= outbox.PER_ENDPOINT
    assert max(receiver.most_at_once.values()) <= outbox.PER_ENDPOINT
    assert WebhookDelivery.objects.filter(endpoint=made[17], state="delivered").count() == 0
    receiver.hanging = set()
    receiver.let_go.set()
    until_ended(postman, made[17])
    assert {len(receiver.at(f"/{n}")) for n in range(50)} == {6}, "and each came once"


def test_a_tenant_whose_endpoints_all_hang_keeps_no_other_waiting(
    book: Book, receiver: Receiver, postman: webhooks.Postman, settings: Any
) -> None:
    settings.WEBHOOK_TIMEOUT_SECONDS = 8
    for n in range(30):
        registered(book, receiver, f"/slow/{n}")
    receiver.hanging = {f"/slow/{n}" for n in range(30)}
    for _ in range(4):
        ended(book)
    send(postman)
    wait_for(lambda: sum(receiver.at_once.values()) >= outbox.PER_TENANT)
    rival = Book()
    quick, _ = registered(rival, receiver, "/quick")
    ended(rival)
    send(postman)
    wait_for(lambda: receiver.at("/quick"), 3)
    assert sum(it for path, it in receiver.at_once.items() if path != "/quick") == outbox.PER_TENANT
    assert len(until_ended(postman, quick)) == 1


def test_while_a_secret_is_rotated_both_sign_and_afterwards_the_new_one_alone(
    book: Book, receiver: Receiver, postman: webhooks.Postman
) -> None:
    endpoint, old = registered(book, receiver)
    new = endpoints.rotate(endpoint, overlap=timedelta(hours=1))
    outbox.ping(endpoint)
    until_ended(postman, endpoint)
    (during,) = receiver.messages
    assert during.verified(old) == during.verified(new)
    assert len(during.headers["webhook-signature"].split(" ")) == 2
    WebhookEndpoint.objects.filter(pk=endpoint.pk).update(old_secret_until=timezone.now())
    outbox.ping(endpoint)
    until_ended(postman, endpoint)
    after = receiver.messages[-1]
    assert after.verified(new)
    with pytest.raises(WebhookVerificationError):
        after.verified(old)
    newest = endpoints.rotate(endpoint, overlap=timedelta(0))
    outbox.ping(endpoint)
    until_ended(postman, endpoint)
    assert receiver.messages[-1].verified(newest)
    assert len(receiver.messages[-1].headers["webhook-signature"].split(" ")) == 1


def test_a_secret_is_encrypted_and_opens_for_its_own_endpoint_only(
    book: Book, receiver: Receiver, postman: webhooks.Postman, settings: Any
) -> None:
    endpoint, secret = registered(book, receiver)
    other, _ = registered(book, receiver, "/other")
    stored = bytes(WebhookEndpoint.objects.get(pk=endpoint.pk).secret)
    assert secret.encode() not in stored
    assert signing.decrypted(stored, endpoint.pk) == secret
    WebhookEndpoint.objects.filter(pk=other.pk).update(secret=stored)
    outbox.ping(other)
    send(postman)
    wait_for(lambda: WebhookAttempt.objects.filter(delivery__endpoint=other, error="secret_unreadable").exists())
    assert receiver.messages == []
    former, settings.SECRET_KEY = settings.SECRET_KEY, "another one"
    with pytest.raises(signing.Unreadable):
        signing.decrypted(stored, endpoint.pk)
    settings.SECRET_KEY_FALLBACKS = [former]
    assert signing.decrypted(stored, endpoint.pk) == secret


def test_two_processes_never_claim_the_same_delivery_and_the_bounds_hold_among_them(
    book: Book, receiver: Receiver
) -> None:
    endpoint, _ = registered(book, receiver)
    for _ in range(10):
        ended(book)
    webhook_events.write()
    first = outbox.claim(uuid.uuid4(), places=3, failing_places=3)
    second = outbox.claim(uuid.uuid4(), places=30, failing_places=30)
    assert (len(first), len(second)) == (3, outbox.PER_ENDPOINT - 3)
    assert not {row.id for row in first} & {row.id for row in second}
    assert outbox.claim(uuid.uuid4(), places=30, failing_places=30) == []
    assert {it.endpoint_id for it in deliveries(endpoint)} == {endpoint.pk}


def test_a_process_that_lost_its_claim_changes_nothing(book: Book, receiver: Receiver) -> None:
    endpoint, _ = registered(book, receiver)
    outbox.ping(endpoint)
    late, token = uuid.uuid4(), uuid.uuid4()
    (row,) = outbox.claim(late, places=9, failing_places=9)
    WebhookDelivery.objects.filter(pk=row.id).update(next_at=timezone.now())
    (again,) = outbox.claim(token, places=9, failing_places=9)
    assert (row.n, again.n) == (1, 2)
    outbox.finish([outbox.Outcome(row.id, late, "gone", status=410)])
    (delivery,) = deliveries(endpoint)
    assert (delivery.state, delivery.claim) == ("pending", token)
    outbox.finish([outbox.Outcome(row.id, token, "delivered", status=200)])
    (delivery,) = deliveries(endpoint)
    assert (delivery.state, delivery.claim) == ("delivered", None)
    assert [it["error"] for it in outbox.attempts_json(delivery)] == ["worker_lost", None]


def test_what_a_receiver_says_is_kept_as_inert_text(book: Book, receiver: Receiver, postman: webhooks.Postman) -> None:
    endpoint, _ = registered(book, receiver)
    receiver.answer = b"a\0b\x1b[31m\r\n\xff<script>\xe2\x80\xae" + b"x" * 5000
    outbox.ping(endpoint)
    (delivery,) = until_ended(postman, endpoint)
    (attempt,) = outbox.attempts_json(delivery)
    assert attempt["answer"].startswith("ab[31m\n\N{REPLACEMENT CHARACTER}<script>x")
    assert len(attempt["answer"]) <= 1024


def test_a_url_that_leads_inside_by_the_time_it_is_used_is_not_posted_to(
    book: Book, receiver: Receiver, postman: webhooks.Postman
) -> None:
    endpoint, _ = registered(book, receiver)
    postman._client = type(postman._client)(type(postman._client.rules)(ports=(range(1, 65536),), plain_http=True))
    outbox.ping(endpoint)
    send(postman)
    wait_for(lambda: WebhookAttempt.objects.filter(delivery__endpoint=endpoint, error="bad_url").exists())
    assert receiver.messages == []


def test_old_events_are_forgotten_and_what_waits_at_a_disabled_endpoint_is_given_up(
    book: Book, receiver: Receiver, settings: Any
) -> None:
    endpoint, _ = registered(book, receiver)
    outbox.ping(endpoint)
    (kept,) = deliveries(endpoint)
    settings.WEBHOOK_KEEP_DAYS = -1
    outbox.tidy(500)
    assert deliveries(endpoint) == [kept], "what is still to be sent is kept"
    endpoints.change(endpoint, is_enabled=False)
    settings.WEBHOOK_GIVE_UP_SECONDS = 0
    time.sleep(0.01)
    outbox.tidy(500)
    assert deliveries(endpoint) == []


def test_settlement_does_not_wait_for_webhooks_and_needs_no_table_lock(book: Book, receiver: Receiver) -> None:
    """The trigger looks for an endpoint by index, and a tenant without one writes nothing."""
    (row,) = postgres.run(
        "EXPLAIN (FORMAT JSON) SELECT FROM tenants_webhookendpoint p WHERE p.tenant_id = %s AND tenants_webhook_wants(p, NULL, 'x')",
        [book.tenant.pk],
    )
    assert "Index" in json.dumps(row[0])
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tgname FROM pg_trigger WHERE tgname = 'webhook_event' AND tgrelid = 'usage_call'::regclass"
        )
        assert cursor.fetchone()
