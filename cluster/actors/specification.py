"""What an actor is built from: the configuration and the secret of tokens, encoded, since Ray keeps them for every restart."""

from pathlib import Path

import msgspec
from msgspec import Struct

from cluster.actors.token_secret import token_secret
from cluster.config import Compiled, Config, compile_config
from cluster.core.placement import SlotMap, assign_slots


class Specification(Struct, frozen=True):
    """The configuration and what follows from it."""

    config: Config
    revision: int
    """Of the configuration: rises with every change."""
    encoded: bytes
    compiled: Compiled
    slots: SlotMap
    token_secret: str
    """What gateways sign tokens with. It is in nothing that is shown."""

    def __repr__(self) -> str:
        return f"Specification({self.name!r}, {self.revision})"

    @property
    def name(self) -> str:
        """Return the cluster's name."""
        return self.config.cluster.name

    @property
    def gateways(self) -> list[str]:
        """Return the addresses of all gateways; none where these are found out (`has_places`)."""
        count = self.config.cluster.gateways
        return [f"gateway-{n}" for n in range(count)] if isinstance(count, int) else []

    @property
    def has_places(self) -> bool:
        """Return whether gateways are where nodes have places for them."""
        return not isinstance(self.config.cluster.gateways, int)

    @property
    def spread(self) -> list[str]:
        """Return the sources whose channels are divided among the ingestors one by one."""
        return [name for name, source in self.config.sources.items() if source.is_spread]

    @classmethod
    def decode(cls, encoded: bytes) -> "Specification":
        """Read what `encode` wrote."""
        revision, config, secret = msgspec.msgpack.decode(encoded, type=tuple[int, Config, str])
        slots = assign_slots(range(config.cluster.shards), 1, config.cluster.coordinators)
        return cls(config, revision, encoded, compile_config(config), slots, secret)

    def following(self, before: "Specification") -> "Specification":
        """Return it with the secret of an earlier one, unless the configuration says another: tokens stay good."""
        if self.config.gateway.token_secret != before.config.gateway.token_secret:
            return self
        encoded = msgspec.msgpack.encode((self.revision, self.config, before.token_secret))
        return msgspec.structs.replace(self, encoded=encoded, token_secret=before.token_secret)

    def after(self, before: "Specification") -> "Specification":
        """Return it with a later number than another's: whoever says it last counts, whatever that machine's clock says."""
        revision = max(self.revision, before.revision + (self.config != before.config))
        encoded = msgspec.msgpack.encode((revision, self.config, self.token_secret))
        return msgspec.structs.replace(self, encoded=encoded, revision=revision)


def encode(config: Config, revision: int) -> bytes:
    """Write a configuration for actors, which run in directories of their own."""
    storage, auth = config.storage, config.gateway.auth
    if storage.path is not None:
        storage = msgspec.structs.replace(storage, path=str(Path(storage.path).absolute()))
    for name in ("keys_file", "revoked_file"):
        if file := getattr(auth, name):
            auth = msgspec.structs.replace(auth, **{name: str(Path(file).absolute())})
    gateway = msgspec.structs.replace(config.gateway, auth=auth)
    made = msgspec.structs.replace(config, storage=storage, gateway=gateway)
    return msgspec.msgpack.encode((revision, made, token_secret(made)))
