"""What waiting mutations take of a home, and when there is no room for one more."""

from collections import Counter
from random import Random

import pytest

from cluster.core import mutation_shares
from cluster.core.mutation_shares import MutationShares
from cluster.errors import ErrorCode, LimitError


def test_whatever_is_taken_and_given_back_the_sums_are_what_is_there() -> None:
    random, shares = Random(7), MutationShares()
    there: dict[str, tuple[str, int]] = {}
    for _ in range(2_000):
        mutation = f"m{random.randrange(30)}"
        if random.random() < 0.5:
            there.pop(mutation, None)
            shares.give_back(mutation)
        else:
            account = there[mutation][0] if mutation in there else random.choice(["", "ann", "bob"])
            there[mutation] = account, random.randrange(1_000)
            shares.take(mutation, *there[mutation])
        counts, sizes = Counter[str](), Counter[str]()
        for account, size in there.values():
            counts[account] += 1
            sizes[account] += size
        assert (len(shares), shares.size) == (len(there), sizes.total())
        accounts = {name: (share.count, share.size) for name, share in shares._accounts.items()}
        assert accounts == {name: (counts[name], sizes[name]) for name in counts if name}


@pytest.mark.parametrize(
    ("account", "size", "limit"),
    [
        ("ann", 10, None),
        ("ann", 31, "waiting_bytes_per_account"),
        ("bob", 0, "waiting_mutations_per_account"),
        ("new", 61, "waiting_bytes_per_account"),
        ("", 120, None),
        ("", 121, "waiting_bytes"),
    ],
)
def test_there_is_room_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch, account: str, size: int, limit: str | None
) -> None:
    monkeypatch.setattr(mutation_shares, "MAX_UNSETTLED", 20)
    monkeypatch.setattr(mutation_shares, "MAX_UNSETTLED_BYTES", 240)
    shares = MutationShares()
    shares.take("m1", "ann", 30)
    shares.take("m2", "bob", 0)
    shares.take("m3", "bob", 0)
    shares.take("m4", "", 90)
    if limit is None:
        shares.require(account, size)
        return
    with pytest.raises(LimitError) as raised:
        shares.require(account, size)
    assert (raised.value.code, raised.value.limit) == (ErrorCode.TOO_MANY, limit)
