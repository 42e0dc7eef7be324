"""What Ray's head keeps for shards, and knows of nodes and processes.

Every function blocks. Where the head is gone Ray waits for a minute and then ends the process.
What must not live here: calls to actors (`handles`).
"""

from typing import Any

import msgspec
import ray
from ray._private import state as ray_state
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import RayError
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.actors.handles import Unreachable, namespace
from cluster.core.shard_roles import Record

DRAINING = 4
"""`NodeStatus` of Ray's autoscaler."""


def _role_key(cluster: str, shard: int) -> bytes:
    return f"harbor/{cluster}/roles/{shard}".encode()


def kept(cluster: str, shard: int) -> Record | None:
    """Return what Ray keeps of a shard's roles; it waits for Ray's head.

    Raises:
        Unreachable: Ray's head does not answer.
    """
    try:
        found = internal_kv._internal_kv_get(_role_key(cluster, shard))
    except (RayError, RuntimeError, OSError) as error:
        raise Unreachable(f"Ray's head: {type(error).__name__}") from error
    return None if found is None else msgspec.msgpack.decode(found, type=Record)


def keep(cluster: str, shard: int, record: Record) -> None:
    """Have Ray keep a shard's roles.

    Raises:
        Unreachable: Ray's head does not answer.
    """
    try:
        internal_kv._internal_kv_put(_role_key(cluster, shard), msgspec.msgpack.encode(record))
    except (RayError, RuntimeError, OSError) as error:
        raise Unreachable(f"Ray's head: {type(error).__name__}") from error


def on_node(node: str) -> Any:
    """Return Ray's option for an actor that is to be on a node, as long as that lives."""
    return NodeAffinitySchedulingStrategy(node, soft=True)


def draining(address: str) -> set[str]:
    """Return the nodes that Ray drains: they are about to go. It blocks.

    Raises:
        Unreachable: Ray's head does not answer.
    """
    from ray.autoscaler.v2.sdk import get_cluster_resource_state  # noqa: PLC0415 - imports that one actor needs

    try:
        state = get_cluster_resource_state(GcsClient(address=address))
    except (RayError, RuntimeError, OSError) as error:
        raise Unreachable(f"Ray's head: {type(error).__name__}") from error
    return {node.node_id.hex() for node in state.node_states if node.status == DRAINING}


def has_ended(cluster: str, actor: str, node: str, pid: int) -> bool:
    """Whether the process that an actor had on a node has ended, by word of that node. It blocks.

    A node that is gone itself has not said so: its processes may live, cut off.
    """
    try:
        handle = ray.get_actor(actor, namespace(cluster))
        found = ray_state.actors(handle._actor_id.hex())
        alive = any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())  # type: ignore[no-untyped-call]
    except ValueError:
        return False  # it was ended for good; who did it knows
    except (RayError, RuntimeError, OSError):
        return False
    if not alive or not found:  # nor does one that Ray has forgotten tell anything
        return False
    return found["State"] in ("RESTARTING", "DEAD") or found["Pid"] not in (0, pid)


def is_there(cluster: str, actor: str) -> bool:
    """Whether there is a process of an actor on a node that lives, for all that Ray knows. It blocks.

    Raises:
        Unreachable: Ray's head does not answer.
    """
    try:
        found = ray_state.actors(ray.get_actor(actor, namespace(cluster))._actor_id.hex())
        alive = {each["NodeID"] for each in ray.nodes() if each["Alive"]}  # type: ignore[no-untyped-call]
    except ValueError:
        return False
    except (RayError, RuntimeError, OSError) as error:
        raise Unreachable(f"Ray's head: {type(error).__name__}") from error
    return bool(found) and found["State"] == "ALIVE" and found["Address"]["NodeID"] in alive


def is_starting(cluster: str, actor: str) -> bool:
    """Whether Ray is about to start an actor's process, for all that is known: also where its head does not answer. It blocks."""
    try:
        found = ray_state.actors(ray.get_actor(actor, namespace(cluster))._actor_id.hex())
    except ValueError:
        return False
    except (RayError, RuntimeError, OSError):
        return True
    return bool(found) and found["State"] not in ("ALIVE", "DEAD")
