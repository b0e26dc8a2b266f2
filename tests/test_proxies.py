"""Proxies that the environment names: passed by on this machine, and named where a server does not answer."""

from __future__ import annotations

import os
import urllib.request

import httpx
import pytest

from onenip.addresses import describe_proxy, pass_by_proxy

NAMES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


def test_local_servers_are_asked_directly(environment):
    """Every library's own rule lets requests to this machine pass by it; other exemptions stay."""
    environment.setenv("http_proxy", "http://me:word@proxy.example:3128")
    environment.setenv("NO_PROXY", "plant.example")
    environment.setenv("no_proxy", "plant.example")

    pass_by_proxy()

    for host in ("127.0.0.1", "localhost", "plant.example"):
        assert urllib.request.proxy_bypass_environment(host)
    assert not urllib.request.proxy_bypass_environment("s3.example")
    with httpx.Client() as client:
        direct = client._transport_for_url(httpx.URL("http://127.0.0.1:5000"))
        assert direct is client._transport
    assert "http_proxy sends requests through http://***@proxy.example:3128" in describe_proxy()
    assert "word" not in describe_proxy()


def test_without_a_proxy_nothing_changes(environment):
    """No variable appears, and errors end as they did."""
    pass_by_proxy()

    assert "NO_PROXY" not in os.environ
    assert describe_proxy() == ""
    environment.setenv("HTTP_PROXY", "")
    assert describe_proxy() == ""
