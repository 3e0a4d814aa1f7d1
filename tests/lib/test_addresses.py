"""Who calls, where proxies may stand between, and callers may say what they like."""

from ipaddress import ip_network

import pytest

from aiplatform.lib.addresses import client_address, home

PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8"), ip_network("192.0.2.7/32")]


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "expected"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # no proxy of ours wrote that
        ("10.1.1.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.1.1.1", ["1.2.3.4, 198.51.100.1"], "198.51.100.1"),  # the rest the caller wrote himself
        ("10.1.1.1", ["1.2.3.4, 198.51.100.1, 192.0.2.7", "10.2.2.2"], "198.51.100.1"),
        ("10.1.1.1", ["nonsense, 198.51.100.1:4711"], "198.51.100.1"),
        ("10.1.1.1", ["198.51.100.1, unknown"], "10.1.1.1"),
        ("10.1.1.1", [], "10.1.1.1"),
        ("fd00::1", ["[2001:db8::1]:443"], "2001:db8::1"),
        ("::ffff:10.1.1.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("", ["198.51.100.1"], ""),
        ("/run/web.sock", ["198.51.100.1"], ""),
    ],
)
def test_the_client_is_whom_the_last_proxy_of_ours_has_seen(peer: str, forwarded_for: list[str], expected: str) -> None:
    assert client_address(peer, forwarded_for, PROXIES) == expected


def test_an_ipv6_caller_is_told_apart_by_the_network_that_he_cannot_choose() -> None:
    assert home("2001:db8:1:2:3:4:5:6") == home("2001:db8:1:2::9") != home("2001:db8:1:3::9")
    assert home("198.51.100.1") == "198.51.100.1"
