import orjson
import pytest

from cluster.demo import hub as hub_module
from cluster.demo.hub import Hub, Listener
from cluster.demo.tracker import Emission


@pytest.fixture
def hub():
    return Hub()


def listener(hub):
    cut = []
    made = Listener(lambda: cut.append(True))
    hub.listeners.add(made)
    return made, cut


async def test_each_gets_its_channels_in_its_form(hub):
    (socket, _), (stream, _) = listener(hub), listener(hub)
    hub.subscribe(socket, "a")
    hub.subscribe(socket, "b")
    hub.unsubscribe(socket, "b")
    hub.stream(stream, "activity")
    hub.broadcast(Emission("a", "x", {"n": 1}))
    hub.broadcast(Emission("b", "x", {}))
    hub.broadcast(Emission("activity", "activity", {"id": "7"}))
    hub.send_raw("a", b"raw")
    frames = await socket.take()
    assert orjson.loads(frames[0]) == {"event": "x", "channel": "a", "data": {"n": 1}, "id": "1"}
    assert frames[1:] == [b"raw"]
    assert await stream.take() == [b'id: 7\nevent: activity\ndata: {"id":"7"}\n\n']
    assert await stream.take(0.001) == []
    assert (hub.joined(), hub.streaming()) == ({"a": 1}, {"activity": 1})
    assert (hub.subscribes, hub.unsubscribes, hub.emitted) == ({"a": 1, "b": 1}, {"b": 1}, 3)


async def test_one_that_does_not_take_is_hung_up_on(hub, monkeypatch):
    monkeypatch.setattr(hub_module, "QUEUE_EVENTS", 3)
    slow, cut = listener(hub)
    hub.subscribe(slow, "a")
    for _ in range(5):
        hub.broadcast(Emission("a", "x", 1))
    assert cut == [True]
    assert len(slow.queue) == 3


async def test_hanging_up_chooses(hub):
    (socket, socket_cut), (stream, stream_cut) = listener(hub), listener(hub)
    hub.subscribe(socket, "a")
    hub.stream(stream, "activity")
    hub.hang_up(events=False)
    assert (socket_cut, stream_cut) == ([True], [])
    assert hub.joined() == {}
    hub.hang_up()
    assert stream_cut == [True]
    assert hub.listeners == set()
