"""Which pages of a browser may ask at an admin listener."""

import pytest

from proxy.admin.browsers import check_host, check_origin
from sidecar.wire.errors import ApiError

HOST = "127.0.0.1:8001"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": HOST},
        {"host": HOST, "origin": f"http://{HOST}"},
        {"host": HOST, "origin": f"http://{HOST}", "sec-fetch-site": "same-origin"},
        {"host": HOST, "sec-fetch-site": "none"},
        {"host": "Console.example", "origin": "https://console.example"},
    ],
)
def test_programs_and_our_own_pages_may(headers: dict[str, str]) -> None:
    check_origin(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": HOST, "origin": "http://evil.example"},
        {"host": HOST, "origin": "http://127.0.0.1:3000"},
        {"host": HOST, "origin": "null"},
        {"host": HOST, "origin": ""},
        {"host": HOST, "sec-fetch-site": "cross-site"},
        {"host": HOST, "sec-fetch-site": "same-site"},
    ],
)
def test_a7_pages_of_others_may_not(headers: dict[str, str]) -> None:
    with pytest.raises(ApiError) as refused:
        check_origin(headers)
    assert (refused.value.status, refused.value.code) == (403, "cross_origin")


@pytest.mark.parametrize(
    "host", [HOST, "[::1]:8001", "localhost:8001", "box", "a.localhost", "192.0.2.7", "console.example:8001"]
)
def test_addresses_local_names_and_our_own_are_ours(host: str) -> None:
    check_host(host, frozenset({"console.example"}))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8001", "127.0.0.1.evil.example", "console.example.com"])
def test_a7_a_name_that_was_rebound_to_us_is_not(host: str) -> None:
    with pytest.raises(ApiError) as refused:
        check_host(host, frozenset({"console.example"}))
    assert (refused.value.status, refused.value.code) == (403, "host_not_allowed")
