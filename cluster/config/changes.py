"""What of a configuration may change while the cluster runs, and whom a change concerns."""

from operator import attrgetter

from cluster.config.model import Config
from cluster.core.gateway_scaling import GatewayScale

FIXED = (
    "cluster.name",
    "cluster.replicas",
    "cluster.gateways",
    "gateway.host",
    "gateway.port",
    "gateway.admin_host",
    "gateway.admin_port",
    "gateway.auth",
    "gateway.tenant_claim",
    "gateway.token_secret",
    "storage",
)
"""What only a restart changes: how gateways are placed, what is listened on, where things are stored."""
UNTOLD = ("storage", "gateway.auth", "gateway.token_secret")
"""Of these, what they were and are is long, or a secret."""
INGESTION = ("batching", "sources", "streams", "entities", "relations", "confirmations")
"""What ingestors and coordinators are built from."""
SHARDS = (*INGESTION, "queries", "services", "cache", "mutations")
CONCERNS = {"ingestor": INGESTION, "coordinator": INGESTION, "shard": SHARDS, "gateway": ("gateway.demo_page",)}
"""By kind of actor, what it has to be made anew for; of the rest a gateway takes everything as it runs."""


def refusals(before: Config, after: Config) -> list[str]:
    """Return a line for each thing that cannot change while the cluster runs."""
    lines = []
    for path in FIXED:
        old, new = attrgetter(path)(before), attrgetter(path)(after)
        scale = isinstance(old, GatewayScale) and isinstance(new, GatewayScale)
        count = path == "cluster.gateways" and isinstance(old, int) and isinstance(new, int)
        if old != new and not scale and not count:
            shown = "" if path in UNTOLD else f" ({old} -> {new})"
            lines.append(f"{path}: cannot change while the cluster runs{shown}: restart it")
    return lines


def concerns(kind: str, before: Config, after: Config) -> bool:
    """Whether actors of a kind have to be made anew."""
    return any(attrgetter(path)(before) != attrgetter(path)(after) for path in CONCERNS[kind])
