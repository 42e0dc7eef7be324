"""Epochs rise, leases end."""

from cluster.core.role import EPOCH_ORIGIN_MS, LEASE_MS, Lease, next_epoch


def test_an_epoch_is_the_time_unless_that_is_not_later() -> None:
    assert next_epoch(EPOCH_ORIGIN_MS + 7.9) == 7
    assert next_epoch(EPOCH_ORIGIN_MS + 7.9, 3, 12) == 13
    assert next_epoch(0.0) == 1


def test_a_lease_never_held_does_not_hold() -> None:
    assert not Lease().holds(0.0)


def test_a_lease_ends_and_is_not_shortened_by_what_was_sent_before() -> None:
    lease = Lease()
    lease.renewed(500.0)
    lease.renewed(100.0)
    assert lease.holds(500.0 + LEASE_MS - 1)
    assert not lease.holds(500.0 + LEASE_MS)
