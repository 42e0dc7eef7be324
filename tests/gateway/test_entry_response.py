import socket

from cluster.gateway.entry_response import DateHeader
from tests.gateway.conftest import Harness, until


def test_the_date_is_made_once_a_second() -> None:
    date = DateHeader()
    first = date.at(1_000_000_000_123.0)
    assert first == b"Sun, 09 Sep 2001 01:46:40 GMT"
    assert date.at(1_000_000_000_900.0) is first
    assert date.at(1_000_000_001_000.0) == b"Sun, 09 Sep 2001 01:46:41 GMT"


async def test_pipelined_and_closing_connections_get_whole_answers(harness: Harness) -> None:
    await harness.put('["a"]', {"n": 1})
    async with harness.socket() as client:
        await client.send('{"type":"subscribe","id":1,"key":["a"]}')
        await until(client, "snapshot_end")
        target = "/v1/entries?key=%5B%22a%22%5D"
        for _ in range(2):  # the second is answered by the short way
            async with harness.http.get(target) as response:
                body = await response.read()
        loop = harness.loop
        with socket.create_connection(("127.0.0.1", harness.port)) as raw:
            raw.setblocking(False)
            one = f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            last = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            await loop.sock_sendall(raw, one + one + last)
            received = b""
            while chunk := await loop.sock_recv(raw, 65536):
                received += chunk
        assert received.count(b"HTTP/1.1 200 OK\r\n") == 3
        assert received.count(body) == 3
        assert received.count(b"Date: ") == 3
