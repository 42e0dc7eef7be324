"""A service counts as offline after misses in a row, and is tried again at growing intervals until it answers."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.core.service_health import MAX_PROBE_MS, OFFLINE_AFTER, PROBE_MS, ServiceHealth

START = 1_000.0


def lost(service: str = "api") -> ServiceHealth:
    health = ServiceHealth()
    assert [health.missed(service, START) for _ in range(OFFLINE_AFTER)] == [False] * (OFFLINE_AFTER - 1) + [True]
    return health


def test_a_service_that_was_never_called_is_online() -> None:
    health = ServiceHealth()
    assert not health.reached("api")
    assert not health.may_probe("api", START)
    assert list(health.offline()) == []


def test_it_is_lost_once_after_so_many_misses_in_a_row() -> None:
    health = lost()
    assert list(health.offline()) == [("api", START + PROBE_MS)]
    assert not health.missed("api", START)


def test_an_answer_in_between_starts_the_count_anew() -> None:
    health = ServiceHealth()
    for _ in range(OFFLINE_AFTER - 1):
        health.missed("api", START)
    assert not health.reached("api"), "it was not offline"
    assert [health.missed("api", START) for _ in range(OFFLINE_AFTER)][-1]


def test_an_answer_brings_it_back_once() -> None:
    health = lost()
    assert health.reached("api")
    assert not health.reached("api")
    assert list(health.offline()) == []
    assert not health.may_probe("api", START + MAX_PROBE_MS)


def test_it_is_known_for_how_long_it_was_lost() -> None:
    health = lost()
    assert health.offline_ms("api", START + 700) == 700
    health.missed("api", START + 800)
    assert health.offline_ms("api", START + 900) == 900, "since it was lost, not since it was tried"
    assert health.offline_ms("other", START + 900) == 0
    health.reached("api")
    assert health.offline_ms("api", START + 900) == 0


def test_it_may_be_tried_once_per_wait() -> None:
    health = lost()
    assert not health.may_probe("api", START + PROBE_MS - 1)
    assert health.may_probe("api", START + PROBE_MS)
    assert not health.may_probe("api", START + PROBE_MS)
    assert list(health.offline()) == [("api", START + 2 * PROBE_MS)]


def test_waits_double_up_to_the_longest_and_begin_anew_after_an_answer() -> None:
    health = lost()
    now_ms, waits = START, []
    for _ in range(8):
        ((_, at),) = health.offline()
        waits.append(at - now_ms)
        assert health.may_probe("api", at)
        now_ms = at
        health.missed("api", now_ms)
    assert waits == [1_000.0, 2_000.0, 4_000.0, 8_000.0, 16_000.0, MAX_PROBE_MS, MAX_PROBE_MS, MAX_PROBE_MS]
    health.reached("api")
    for _ in range(OFFLINE_AFTER):
        health.missed("api", now_ms)
    assert list(health.offline()) == [("api", now_ms + PROBE_MS)]
    assert health.may_probe("api", now_ms + PROBE_MS)
    assert list(health.offline()) == [("api", now_ms + 2 * PROBE_MS)]


def test_services_do_not_concern_each_other() -> None:
    health = lost("one")
    assert not health.missed("other", START)
    assert not health.may_probe("other", START + PROBE_MS)
    health.reached("other")
    assert [name for name, _ in health.offline()] == ["one"]


@given(st.lists(st.sampled_from(["missed", "reached", "probe", "wait"]), max_size=60))
def test_it_is_offline_from_the_last_of_so_many_misses_to_the_next_answer(events: list[str]) -> None:
    health, now_ms = ServiceHealth(), START
    in_a_row, is_offline, probed_at = 0, False, START
    for event in events:
        match event:
            case "missed":
                in_a_row += 1
                assert health.missed("api", now_ms) is (not is_offline and in_a_row == OFFLINE_AFTER)
                if in_a_row == OFFLINE_AFTER:
                    is_offline, probed_at = True, now_ms
            case "reached":
                assert health.reached("api") is is_offline
                in_a_row, is_offline = 0, False
            case "probe":
                if health.may_probe("api", now_ms):
                    assert is_offline
                    assert now_ms - probed_at >= PROBE_MS, "two tries too close to each other"
                    probed_at = now_ms
            case _:
                now_ms += PROBE_MS
        assert [name for name, _ in health.offline()] == ["api"] * is_offline
        assert all(at <= now_ms + MAX_PROBE_MS for _, at in health.offline())
