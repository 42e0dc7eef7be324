import pytest

from cluster.core.url import origin, parted


@pytest.mark.parametrize(
    ("url", "bare", "said"),
    [
        ("http://x/a?b=c@d", "http://x/a?b=c@d", {}),
        ("http://u:p@x:1/a?b#c", "http://x:1/a?b#c", {"Authorization": "Basic dTpw"}),
        ("https://u@[::1]:1", "https://[::1]:1", {"Authorization": "Basic dTo="}),
        ("http://u%40:p%3A@x/{last_event_id}", "http://x/{last_event_id}", {"Authorization": "Basic dUA6cDo="}),
    ],
)
def test_user_and_password_go_into_a_header(url, bare, said):
    assert parted(url, {"X": "y"}) == (bare, {"X": "y", **said})


def test_a_header_of_ones_own_counts():
    assert parted("http://u:p@x", {"authorization": "Bearer t"}) == ("http://x", {"authorization": "Bearer t"})


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:8700"), ("::1", "http://[::1]:8700"), ("a.b", "http://a.b:8700")]
)
def test_an_address_is_a_url(host, url):
    assert origin(host, 8700) == url
