"""What a browser shows: cookies under a name that nobody else can plant, and whether it navigates."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from server.browsers import cookie_line, cookie_of, host_of, is_plain_loopback, navigates


def request(**headers: str) -> web.BaseRequest:
    """Return a request with these headers; `_` in their names stands for `-`."""
    head = {"Host": "shop.example"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return make_mocked_request("GET", "/", headers=head)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}, True),
        ({"Accept": "*/*"}, False),
        ({}, False),
        ({"Sec_Fetch_Mode": "navigate"}, True),
        ({"Sec_Fetch_Mode": "cors", "Accept": "text/html"}, False),
    ],
)
def test_a_browser_says_whether_it_navigates_and_html_counts_where_it_does_not(
    headers: dict[str, str], expected: bool
) -> None:
    assert navigates(request(**headers)) is expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Host": "localhost:8080"}, True),
        ({"Host": "127.0.0.1"}, True),
        ({"Host": "[::1]:8080"}, True),
        ({"Host": "[::1]"}, True),
        ({"Host": "127.0.0.1:8080", "X_Forwarded_Proto": "https"}, False),
        ({"Host": "127.0.0.1:8080", "X_Forwarded_Host": "shop.example"}, False),
        ({"Host": "shop.example"}, False),
        ({"Host": "127.0.0.1.shop.example"}, False),
        ({"Host": ""}, False),
        ({"Host": "[::1"}, True),
    ],
)
def test_plain_loopback_is_http_to_this_machine(headers: dict[str, str], expected: bool) -> None:
    assert is_plain_loopback(request(**headers)) is expected


def test_the_first_of_several_forwarded_hosts_is_the_browsers() -> None:
    assert host_of(request(X_Forwarded_Host="shop.example:444, inner.example")) == "shop.example:444"
    assert host_of(request()) == "shop.example"


def test_a_cookie_is_found_among_others_by_its_whole_name() -> None:
    shown = "a=1;  __Host-name=right ; x__Host-name=wrong; __Host-name=later; name=plain"
    assert cookie_of(request(Cookie=shown), "name") == "right"
    assert cookie_of(request(Cookie="__Host-name="), "name") == ""
    for other in ("x__Host-name=1", "__Host-name2=1", "__host-name=1", "__Host-name", '"__Host-name=1"', ";;=;"):
        assert not cookie_of(request(Cookie=other), "name")
    assert cookie_of(request(), "name") is None


def test_a_name_without_the_prefix_is_believed_on_plain_loopback_only() -> None:
    assert cookie_of(request(Cookie="name=1", Host="localhost:8080"), "name") == "1"
    assert cookie_of(request(Cookie="name=1"), "name") is None
    assert cookie_of(request(Cookie="name=1", Host="localhost", X_Forwarded_Proto="https"), "name") is None


def test_a_cookie_is_set_so_that_only_this_host_over_tls_and_no_script_has_it() -> None:
    _, line = cookie_line(request(), "name", "v", 60)
    assert line == "__Host-name=v; Max-Age=60; Path=/; HttpOnly; SameSite=Lax; Secure"
    _, line = cookie_line(request(Host="localhost:8080"), "name", "v", 60)
    assert line == "name=v; Max-Age=60; Path=/; HttpOnly; SameSite=Lax"
