"""Files by both SDKs: kept at the provider, and each environment sees its own alone."""

import json
from typing import Any

import anthropic
import openai
import pytest

from tests.gateway.records import settled
from tests.system import Customer, System

LINES = b'{"custom_id":"a"}\n{"custom_id":"b"}\n\x00\xff not a text'


def upload(system: System, customer: Customer, **more: Any) -> str:
    """A file of this tenant's, by the SDK of OpenAI."""
    return system.openai(customer.key).files.create(file=("a.jsonl", LINES), purpose="assistants", **more).id


def test_a_file_is_uploaded_shown_given_back_and_deleted_for_nothing(system: System, customer: Customer) -> None:
    files = system.openai(customer.key).files
    raw = files.with_raw_response.create(file=("a.jsonl", LINES), purpose="assistants")
    name = raw.parse().id
    call = settled(system, raw.headers)
    assert (call["held_nano"], call["charged_nano"], call["endpoint"]) == (0, 0, "files.create")
    assert files.retrieve(name).bytes == len(LINES)
    assert files.content(name).read() == LINES
    assert [one.id for one in files.list()] == [name]
    assert files.delete(name).deleted
    assert list(files.list()) == []
    with pytest.raises(openai.NotFoundError):
        files.retrieve(name)
    seen = [(call["method"], call["path"]) for call in system.far_end.calls() if name in call["path"]]
    assert seen == [
        ("GET", f"/v1/files/{name}"),
        ("GET", f"/v1/files/{name}/content"),
        ("DELETE", f"/v1/files/{name}"),
        ("GET", f"/v1/files/{name}"),
    ]


def test_anthropics_files_are_kept_apart_in_their_own_shape(system: System, customer: Customer) -> None:
    files = system.anthropic(customer.key).beta.files
    kept = files.upload(file=("a.txt", LINES, "text/plain"))
    assert [one.id for one in files.list()] == [kept.id]
    assert files.retrieve_metadata(kept.id).size_bytes == len(LINES)
    assert files.download(kept.id).read() == LINES
    assert list(system.openai(customer.key).files.list()) == []
    files.delete(kept.id)
    assert list(files.list()) == []
    with pytest.raises(anthropic.NotFoundError) as refused:
        system.anthropic(system.tenant().key).beta.files.retrieve_metadata(kept.id)
    assert refused.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/files/{}"), ("GET", "/v1/files/{}/content"), ("DELETE", "/v1/files/{}"), ("GET", "/v1/files/%2e%2e")],
)
def test_a_rival_gets_a_404_for_a_file_as_for_none_and_sees_nothing(
    system: System, customer: Customer, method: str, path: str
) -> None:
    name, before = upload(system, customer), system.far_end.count()
    with system.http(system.tenant().key) as http:
        reply = http.request(method, path.format(name))
        none = http.request(method, path.format("file-nobody"))
        assert http.get("/v1/files").json()["data"] == []
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    assert reply.json()["error"]["message"].replace(name, "x") == none.json()["error"]["message"].replace(
        "file-nobody", "x"
    )
    assert system.far_end.count() == before


def test_another_environment_of_the_same_tenant_is_another_owner(system: System, customer: Customer) -> None:
    name = upload(system, customer)
    other = system.manage("key_issue", "--tenant", customer.name, "--environment", "dev")["key"]
    with system.http(other) as http:
        assert http.get(f"/v1/files/{name}").status_code == 404
        assert http.get("/v1/files").json()["data"] == []


def test_a_list_comes_in_pages_the_newest_first(system: System, customer: Customer) -> None:
    names = [upload(system, customer) for _ in range(3)]
    files = system.openai(customer.key).files
    page = files.list(limit=2)
    assert [one.id for one in page.data] == [names[2], names[1]]
    assert [one.id for one in files.list(limit=2)] == names[::-1]
    assert [one.id for one in files.list(order="asc")] == names
    assert list(files.list(purpose="batch")) == []
    assert system.http(customer.key).get("/v1/files?limit=many").status_code == 400


def test_the_record_stands_before_the_id_goes_out(system: System, customer: Customer) -> None:
    name = upload(system, customer)
    (row,) = system.rows("SELECT * FROM usage_providerobject WHERE provider_id = %s", name)
    (call,) = system.rows("SELECT * FROM usage_call WHERE id = %s", row["call_id"])
    assert (row["kind"], row["provider"], row["credential"]) == ("file", "fake", "env:FAKE_KEY")
    assert row["created_at"] <= call["settled_at"]
    assert str(row["environment_id"]) == customer.environments["prod"]


def test_an_id_that_the_provider_has_given_to_another_is_never_handed_out(system: System, customer: Customer) -> None:
    name = upload(system, customer)
    system.far_end.script(match="stolen", times=1, extra={"id": name})
    with pytest.raises(openai.APIStatusError) as refused:
        system.openai(system.tenant().key).files.create(file=("stolen.txt", b"stolen"), purpose="assistants")
    assert refused.value.status_code == 502
    assert name not in str(refused.value.body)


def test_an_upload_goes_to_the_provider_that_is_named_and_to_no_other(system: System, customer: Customer) -> None:
    name = upload(system, customer, extra_headers={"x-provider": "fake"})
    (row,) = system.rows("SELECT provider FROM usage_providerobject WHERE provider_id = %s", name)
    assert row == {"provider": "fake"}
    with pytest.raises(openai.NotFoundError) as refused:
        upload(system, customer, extra_headers={"x-provider": "nobody"})
    assert refused.value.code == "provider_not_found"


def test_an_unknown_path_is_a_404(system: System, customer: Customer) -> None:
    with system.http(customer.key) as http:
        for path in ("/v1/files/a/b/c", "/v1/fine_tuning/jobs", "/v1/images/variations"):
            reply = http.post(path, json={})
            assert (reply.status_code, reply.json()["error"]["code"]) in {(404, "not_found"), (405, "not_found")}


@pytest.mark.parametrize("name", ["%00", "a%00b", "%F0%9F%98%80", "x" * 300])
def test_an_id_that_can_be_nobodys_is_a_404(system: System, customer: Customer, name: str) -> None:
    assert system.http(customer.key).get(f"/v1/files/{name}").status_code == 404
    body = {"input_file_id": "\ud800\0", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    reply = system.http(customer.key).post("/v1/batches", content=json.dumps(body).encode())
    assert reply.status_code in {400, 404}
