import pytest

from cluster.client.gateways import Gateways
from cluster.errors import ErrorCode, RequestError

URLS = ["http://a", "http://b/harbor/", "https://c:8700"]


def test_one_is_used_until_it_fails_then_the_next() -> None:
    gateways = Gateways(URLS)
    first, second, third = gateways.all()
    assert {first, second, third} == {"http://a", "http://b/harbor", "https://c:8700"}
    gateways.failed(second)
    assert gateways.all() == [first, second, third]
    gateways.failed(first)
    assert gateways.all() == [second, third, first]


def test_clients_spread() -> None:
    assert len({Gateways(URLS).all()[0] for _ in range(200)}) == 3


@pytest.mark.parametrize("urls", ["nonsense", "ws://a", "http://", "http://[::", "http://a:x", ["http://a", "b"], []])
def test_what_is_no_url_is_refused(urls: str | list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        Gateways(urls)
    assert caught.value.code is ErrorCode.BAD_REQUEST
