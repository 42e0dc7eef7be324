"""Where shards' actors are put, and which one moves next."""

import pytest

from cluster.core.shard_places import Move, Placed, next_move, place


def placed(*rows: str) -> dict[str, Placed]:
    """`0a@x*`: actor a of shard 0 is on node x, and is the primary."""
    return {row[:2]: Placed(int(row[0]), row[3], row.endswith("*")) for row in rows}


@pytest.mark.parametrize(
    ("rows", "nodes", "node"),
    [
        ([], "xy", "x"),
        (["0a@x*"], "xy", "y"),
        (["0a@x*", "0c@y", "1a@y*"], "xy", "x"),
        (["9a@x*"], "x", "x"),
        ([], "", None),
    ],
)
def test_a_new_actor_goes_where_its_other_is_not_and_few_are(rows: list[str], nodes: str, node: str | None) -> None:
    assert place(9, placed(*rows), nodes) == node


@pytest.mark.parametrize(
    ("rows", "nodes", "leaving", "move"),
    [
        (["0a@x*", "1a@x*"], "x", "", None),
        (["0a@x*", "0b@x"], "x", "", None),
        (["0a@x*", "0b@x"], "xy", "", ("0b", "y")),
        (["0a@x*", "0b@y"], "xy", "", None),
        (["0a@x*", "1a@x*"], "xy", "", ("0a", "y")),
        (["0a@x*", "1a@x*", "2a@y*"], "xy", "", None),
        (["0a@x*", "0b@y", "1a@x*", "1b@y"], "xyz", "", ("0b", "z")),
        (["0a@x*", "1a@y*"], "y", "x", ("0a", "y")),
        (["0a@x*", "0b@y"], "y", "x", ("0a", "y")),
        (["0a@x*", "0b@y"], "yz", "x", ("0a", "z")),
        (["0a@x*"], "", "x", None),
        (["0a@gone*", "1a@y*"], "xy", "", None),
    ],
    ids=[
        "one node",
        "both on the only one",
        "both on one of two",
        "as it should be",
        "two on one",
        "one more",
        "a third node",
        "a node leaves",
        "a node leaves, the other has the standby",
        "a node leaves, a third is free",
        "no node is left",
        "a node is gone: Ray moves what was there",
    ],
)
def test_what_moves_next(rows: list[str], nodes: str, leaving: str, move: tuple[str, str] | None) -> None:
    found = next_move(placed(*rows), nodes, leaving)
    assert found == (None if move is None else Move(int(move[0][0]), *move))


def test_moving_comes_to_an_end() -> None:
    rows = placed(*(f"{n}{actor}@x{'*' * (actor == 'a')}" for n in range(4) for actor in "ab"))
    moves = 0
    while (move := next_move(rows, "xyz", "")) is not None:
        rows[move.actor] = Placed(move.shard, move.node, rows[move.actor].is_primary)
        moves += 1
        assert moves < 20
    assert sorted(sum(each.node == node for each in rows.values()) for node in "xyz") == [2, 3, 3]
    assert all(rows[f"{n}a"].node != rows[f"{n}b"].node for n in range(4))
