"""Where visitors may be sent: only to origins of the event, written so that every browser reads the same."""

import pytest

from server.return_to import LONGEST_RETURN_TO, allowed, origin_of, waiting_page

SETTINGS = {
    "return_to_origins": [
        "https://shop.example",
        "http://localhost:3000",
        "https://Other.example:443",
        "http://[::1]:80",
    ]
}


@pytest.mark.parametrize(
    ("address", "becomes"),
    [
        ("https://shop.example", "https://shop.example"),
        ("https://shop.example/a/b?c=d&e=%20#f", "https://shop.example/a/b?c=d&e=%20#f"),
        ("HTTPS://SHOP.example:443/A", "https://shop.example/A"),
        ("https://shop.example:0443", "https://shop.example"),
        ("https://shop.example?next=//evil.example", "https://shop.example?next=//evil.example"),
        ("https://shop.example//evil.example", "https://shop.example//evil.example"),
        ("https://shop.example/@evil.example", "https://shop.example/@evil.example"),
        ("https://other.example/", "https://other.example/"),
        ("http://localhost:3000/x", "http://localhost:3000/x"),
        ("http://[::1]/x", "http://[::1]/x"),
        ("https://shop.example/schöne Karten", "https://shop.example/sch%C3%B6ne%20Karten"),
        ('https://shop.example/"<b>', "https://shop.example/%22%3Cb%3E"),
        ("https://shop.example/\udcff", "https://shop.example/%FF"),
    ],
)
def test_an_address_of_the_shop_is_taken_and_fit_for_a_header(address: str, becomes: str) -> None:
    assert allowed(address, SETTINGS) == becomes


@pytest.mark.parametrize(
    "address",
    [
        *("", "/", "/path", "//shop.example", "///shop.example", "shop.example", "?", "#"),
        *("http://shop.example", "https://shop.example:8443", "https://localhost:3000", "http://localhost"),
        *("https://evil.example", "https://shop.example.evil.example", "https://evil.example/https://shop.example"),
        *("https://shop.example@evil.example", "https://shop.example:443@evil.example", "https://u:p@shop.example"),
        *("https://shop.example:pw@evil.example/", "https://@shop.example/", "https://shop.example%40evil.example"),
        *("https:/shop.example", "https:shop.example", "https:\\\\shop.example", "https://shop.example\\@evil.example"),
        *("https://shop.example/\\evil.example", "https:///shop.example", "https://shop.example;evil.example"),
        *("https://shop.example\n.evil.example", "https://shop.example/\r\nSet-Cookie: a=b", "\thttps://shop.example"),
        *(" https://shop.example", "https://shop.example /", "https://shop.example\x00/", "https://shop.example/\x7f"),
        *("javascript:alert(1)//https://shop.example", "data:text/html,x", "ftp://shop.example", "https://"),
        *("https://shop.example.", "https://shop。example", "https://ѕhop.example", "https://shop.example:"),
        *("https://shop.example:4430000", "https://[::1]", "https://shop.example]", "https://shop.example/\n"),
        "https://shop.example/" + "a" * LONGEST_RETURN_TO,
    ],
)
def test_everything_that_leads_elsewhere_or_would_have_to_be_mended_is_not(address: str) -> None:
    assert allowed(address, SETTINGS) is None


def test_without_origins_nothing_is_taken() -> None:
    assert allowed("https://shop.example", {"return_to_origins": []}) is None


def test_an_origin_is_written_as_browsers_write_it() -> None:
    assert origin_of("HTTP://Shop.Example:80/x") == "http://shop.example"
    assert origin_of("https://shop.example:8443") == "https://shop.example:8443"
    assert origin_of("https://shop.example@evil.example") is None


def test_the_waiting_page_is_told_the_way_back_unless_it_is_too_long() -> None:
    assert waiting_page("https://queue.example", "e1", None) == "https://queue.example/w/e1"
    address = waiting_page("", "e1", "https://shop.example/?a=b&c#d")
    assert address == "/w/e1?return_to=https%3A%2F%2Fshop.example%2F%3Fa%3Db%26c%23d"
    assert waiting_page("", "e1", "https://shop.example/" + "/" * (LONGEST_RETURN_TO // 3)) == "/w/e1"
