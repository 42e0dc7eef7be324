"""Which shard a request is for, by a slot map.

A gateway asks by it, and a shard looks at it again before it does anything: a write that a shard takes in for a key of another is
acknowledged, and gone with its next life.

What must not live here: how slots are placed (`placement`), what requests do (`shard_state`).
"""

from cluster.core.messages import Act, Edit, Erase, ListMembers, Mutate, Read, Request, Watch, Write
from cluster.core.placement import SlotMap
from cluster.core.query_key import CanonicalKey


def owner(request: Request, slots: SlotMap) -> int | None:
    """Return the shard that a request is for; None: any that is asked."""
    match request:
        case Read(key=key) | Write(key=key) | Edit(key=key) | Erase(key=key):
            return slots.shard(CanonicalKey(key))
        case Act(key=key, exact=True) | Watch(key=key, prefix=False):
            return slots.shard(CanonicalKey(key))
        case Mutate(scope=scope):
            return slots.shard(CanonicalKey(scope))
        case ListMembers(topic=topic):
            return slots.shard(CanonicalKey(topic))
        case _:
            return None
