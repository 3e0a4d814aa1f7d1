"""A URL that a stranger names leads to public hosts only, whatever it looks like and whatever its name says a moment later."""

import asyncio
import datetime as dt
import ipaddress
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aiplatform.lib import outgoing
from aiplatform.lib.outgoing import Answer, BadAddress, Client, Rules, rules

STRICT = Rules()
LOCAL = rules(networks=["127.0.0.0/8"], ports=["1-65535"], plain_http=True)
EVERY_PORT = rules(networks=[], ports=["1-65535"], plain_http=True)


class Far:
    """A real HTTP server on localhost; `seen` is what it was asked, `replies` what it says."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.seen: list[dict[str, Any]] = []
        self.status, self.headers, self.body, self.wait, self.drip = 200, {}, b"ok", 0.0, 0.0  # type: ignore[var-annotated]
        far = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                far.seen.append({"path": self.path, "body": body, **{k.lower(): v for k, v in self.headers.items()}})
                time.sleep(far.wait)
                self.send_response(far.status)
                for name, value in far.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(far.body)
                time.sleep(far.drip)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def far() -> Iterator[Far]:
    made = Far()
    yield made
    made.close()


def post(url: str, allowed: Rules, *, seconds: float = 5, most: int = 1024, **options: Any) -> Answer:
    async def run() -> Answer:
        client = Client(allowed, **options)
        try:
            return await client.post(url, headers={"x-own": "1"}, body=b"{}", seconds=seconds, most_bytes=most)
        finally:
            await client.close()

    return asyncio.run(run())


def resolving(*answers: list[str]) -> Any:
    """A resolver that gives each answer once, in order, and the last one for ever."""
    left = list(answers)

    async def resolve(_host: str, _port: int) -> list[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


REFUSED_IN_FORM = [
    "https://127.0.0.1/", "https://0.0.0.0/", "https://127.1/", "https://0x7f.1/", "https://0x7f000001/", "https://2130706433/",
    "https://0177.0.0.1/", "https://127.0.0.1./", "https://[::1]/", "https://[::]/", "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:8.8.8.8]/", "https://[::127.0.0.1]/", "https://[64:ff9b::7f00:1]/", "https://[64:ff9b::808:808]/",
    "https://[2002:7f00:1::]/", "https://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/", "https://[fe80::1]/", "https://[fe80::1%25eth0]/",
    "https://[fc00::1]/", "https://[fec0::1]/", "https://[ff02::1]/", "https://[2001:db8::1]/", "https://[2606:4700::5efe:7f00:1]/",
    "https://10.0.0.1/", "https://172.16.0.1/", "https://192.168.1.1/", "https://169.254.169.254/latest/meta-data/",
    "https://100.64.0.1/", "https://192.0.0.1/", "https://192.0.2.1/", "https://198.18.0.1/", "https://224.0.0.1/",
    "https://240.0.0.1/", "https://255.255.255.255/", "https://192.88.99.1/",
    "http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "//example.com/", "example.com",
    "https:///path", "https://", "", "javascript:alert(1)",
    "https://user@example.com/", "https://user:secret@example.com/", "https://@example.com/", "https://example.com@127.0.0.1/",
    "https://example.com:22/", "https://example.com:25/", "https://example.com:0/", "https://example.com:99999/", "https://example.com:x/",
    "https://example.com:80/", "https://example.com:6379/", "https://example.com/#fragment", "https://example.com/#",
    "https://exämple.com/", "https://ⓛocalhost/", "https://１２７.０.０.１/", "https://127。0。0。1/", "https://ex ample.com/",
    "https://example.com\\@127.0.0.1/", "https://example.com\n/", "https://example.com\0/", "https://exa%6dple.com/",
    "https://-example.com/", "https://exa..mple.com/", "https://" + "a" * 64 + ".com/", "https://example.com/" + "a" * 2000,
    "https://[::1/", "https://]/", "https://example.com:443:443/", "https://1.2.3/", "https://example.0x/",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED_IN_FORM)
def test_what_is_no_public_https_url_is_refused_by_its_form_alone(url: str) -> None:
    with pytest.raises(BadAddress):
        outgoing.check(url, STRICT)
    assert post(url, STRICT).error == "bad_url"


@pytest.mark.parametrize(
    "url",
    ["https://example.com/", "https://example.com", "https://hooks.example.com:8443/a?b=c%20d", "https://8.8.8.8/x",
     "https://[2606:4700::1111]/", "https://xn--exmple-cua.com/", "https://EXAMPLE.com/", "https://a_b.example.com/"],
)  # fmt: skip
def test_what_may_be_public_passes(url: str) -> None:
    assert outgoing.check(url, STRICT).scheme == "https"


@pytest.mark.parametrize("host", ["localhost", "localhost.localdomain", "ip6-localhost", "no-such-host.invalid"])
def test_a_name_that_leads_inside_is_refused_like_one_that_leads_nowhere(host: str) -> None:
    with pytest.raises(BadAddress, match="has no public address"):
        outgoing.check_name(outgoing.check(f"https://{host}/", STRICT), STRICT)


def test_a_name_that_leads_inside_at_connect_reaches_nobody(far: Far) -> None:
    url = f"http://localhost:{far.port}/"
    assert post(url, EVERY_PORT).error == "address_refused"
    assert far.seen == []
    assert post(url, LOCAL).status == 200, "the same packet arrives where the operator admits the network"


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::1"], ["::ffff:127.0.0.1"], ["fe80::1%eth0"], ["nonsense"]],
)
def test_one_private_address_among_those_of_a_name_refuses_it(far: Far, addresses: list[str]) -> None:
    answer = post(f"http://hooks.example:{far.port}/", EVERY_PORT, resolve=resolving(addresses))
    assert (answer.error, far.seen) == ("address_refused", [])


def test_a_name_that_was_public_when_looked_at_and_private_when_used_is_refused(far: Far) -> None:
    """DNS rebinding between two requests: each looks again."""

    async def run() -> tuple[str, str]:
        client = Client(EVERY_PORT, resolve=resolving(["93.184.216.34"], ["127.0.0.1"]))
        (first,) = await outgoing._Checking(client).resolve("hooks.example", far.port)
        answer = await client.post(f"http://hooks.example:{far.port}/", headers={}, body=b"", seconds=1, most_bytes=1)
        await client.close()
        return first["host"], answer.error

    assert asyncio.run(run()) == ("93.184.216.34", "address_refused")
    assert far.seen == []


def test_a_name_is_resolved_once_and_the_connection_goes_to_that_very_address(far: Far) -> None:
    """DNS rebinding within a request: a second look would have led elsewhere."""
    asked = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    answer = post(f"http://hooks.example:{far.port}/in?a=1", LOCAL, resolve=resolve)
    assert (answer.status, answer.body) == (200, b"ok")
    assert asked == [("hooks.example", far.port)]
    (seen,) = far.seen
    assert (seen["host"], seen["path"], seen["x-own"]) == (f"hooks.example:{far.port}", "/in?a=1", "1")
    assert not {"cookie", "user-agent", "accept-encoding"} & seen.keys()


def test_the_socket_itself_refuses_what_a_check_before_it_let_pass() -> None:
    client = Client(STRICT)
    with pytest.raises(PermissionError):
        client._socket((2, 1, 6, "", ("169.254.169.254", 443)))


def test_a_redirect_is_an_answer_and_is_not_followed(far: Far) -> None:
    canary = Far()
    far.status, far.headers = 307, {"location": f"http://127.0.0.1:{canary.port}/latest/meta-data"}
    answer = post(f"http://127.0.0.1:{far.port}/", LOCAL)
    assert (answer.status, canary.seen) == (307, [])
    canary.close()


def test_no_proxy_of_the_environment_is_used(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = Far()
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert post(f"http://127.0.0.1:{far.port}/", LOCAL).status == 200
    assert canary.seen == []
    canary.close()


def test_an_answer_is_bounded_in_bytes_and_in_time(far: Far) -> None:
    far.body = b"x" * 5_000_000
    answer = post(f"http://127.0.0.1:{far.port}/", LOCAL)
    assert (answer.status, len(answer.body)) == (200, 1024)
    far.wait = 3
    began = time.monotonic()
    assert post(f"http://127.0.0.1:{far.port}/", LOCAL, seconds=0.5).error == "timeout"
    assert time.monotonic() - began < 2


def test_a_status_counts_though_its_body_never_ends(far: Far) -> None:
    far.body, far.drip = b"begun", 4
    began = time.monotonic()
    answer = post(f"http://127.0.0.1:{far.port}/", LOCAL)
    assert (answer.status, answer.error, answer.body) == (200, "", b"begun")
    assert time.monotonic() - began < 3


def test_a_gzip_bomb_stays_closed(far: Far) -> None:
    far.headers, far.body = {"content-encoding": "gzip"}, b"\x1f\x8bnot unpacked"
    assert post(f"http://127.0.0.1:{far.port}/", LOCAL).body == far.body


def test_what_cannot_be_reached_says_why() -> None:
    assert post("http://127.0.0.1:9/", LOCAL).error == "connect_failed"
    assert post("http://no-such-host.invalid/", EVERY_PORT).error == "name_unknown"


def test_the_certificate_must_be_the_names_own(tmp_path: Path) -> None:
    authority, served = certificates(tmp_path, "hooks.example")
    far = Far(served)
    trust = ssl.create_default_context(cafile=str(authority))
    for host, error in (("hooks.example", ""), ("other.example", "tls_failed")):
        url = f"https://{host}:{far.port}/"
        answer = post(url, LOCAL, resolve=resolving(["127.0.0.1"]), tls=trust)
        assert (answer.error, answer.status) == (error, None if error else 200), host
        if not error:
            assert far.seen[-1]["host"] == f"{host}:{far.port}"
            assert post(url, LOCAL, resolve=resolving(["127.0.0.1"])).error == "tls_failed", "an unknown authority"
    assert len(far.seen) == 1
    far.close()


def certificates(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate of its own authority for a name, and a server's context that shows it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, private)
    return chain, context


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"]
)
def test_addresses_of_the_public_internet_are_public(text: str) -> None:
    assert outgoing.is_public(ipaddress.ip_address(text))


def test_an_admitted_network_admits_itself_and_nothing_else() -> None:
    allowed = rules(networks=["10.1.0.0/16", "fd00::/8"], ports=["443"], plain_http=False)
    assert [allowed.allows(it) for it in ("10.1.2.3", "10.2.0.1", "fd00::1", "127.0.0.1", "8.8.8.8")] == [
        True, False, True, False, True,
    ]  # fmt: skip
