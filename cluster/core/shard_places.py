"""Where shards' actors are: on which node a new one is put, and which one moves next.

A shard's two actors are on two nodes where there are two; no node has many more than another; one that is drained is left first. One actor moves at a time,
and a primary only by handing over to a standby that has everything, so a move loses nothing.

What must not live here: how an actor moves (`cluster.actors.shard_keeper`), which nodes there are.
"""

from collections import Counter
from collections.abc import Collection, Mapping

from msgspec import Struct

UNEVEN = 2
"""A move is worth it where one node has so many actors more than another: with one more it would only change sides."""


class Placed(Struct, frozen=True):
    """Where an actor is."""

    shard: int
    node: str
    """"": nobody knows."""
    is_primary: bool


class Move(Struct, frozen=True):
    """An actor is to be on another node."""

    shard: int
    actor: str
    node: str


def place(shard: int, placed: Mapping[str, Placed], nodes: Collection[str], actor: str = "") -> str | None:
    """Return the node for a shard's new actor, or for `actor` in place of where it is; None: there is none.

    `nodes`: those that take actors.
    """
    others = {each.node for name, each in placed.items() if each.shard == shard and name != actor}
    load = Counter(dict.fromkeys(nodes, 0))
    load.update(each.node for name, each in placed.items() if each.node in nodes and name != actor)
    return min(load, key=lambda node: (node in others, load[node], node), default=None)


def next_move(placed: Mapping[str, Placed], nodes: Collection[str], leaving: Collection[str]) -> Move | None:
    """Return the move that is most needed; None: all is well.

    Args:
        placed: Where the actors are, by name.
        nodes: Those that take actors.
        leaving: Those that are drained: what is there goes first.
    """
    if not nodes:
        return None
    order = sorted(placed, key=lambda name: (placed[name].is_primary, name))
    for name in order:
        if placed[name].node in leaving:
            node = place(placed[name].shard, placed, nodes, name)
            assert node is not None
            return Move(placed[name].shard, name, node)  # beside its other, rather than on a node that goes
    for name in order:
        here = placed[name]
        is_beside = any(
            each.shard == here.shard and each.node == here.node for other, each in placed.items() if other != name
        )
        if is_beside and len(nodes) > 1:
            return _to(name, placed, nodes)
    load = Counter(dict.fromkeys(nodes, 0))
    load.update(each.node for each in placed.values() if each.node in nodes)
    for name in order:
        move = _to(name, placed, nodes)
        if move is not None and load[placed[name].node] - load[move.node] >= UNEVEN:
            return move
    return None


def _to(name: str, placed: Mapping[str, Placed], nodes: Collection[str]) -> Move | None:
    here = placed[name]
    node = place(here.shard, placed, nodes, name)
    if node is None or node == here.node:
        return None
    is_beside = any(each.shard == here.shard and each.node == node for other, each in placed.items() if other != name)
    if is_beside and len(nodes) > 1:
        return None
    return Move(here.shard, name, node)
