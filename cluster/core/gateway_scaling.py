"""How many gateways there are to be, by the sessions they have; which of them go, and for how many places Ray is asked.

A gateway runs on a place that a node offers. For more than there are, Ray's autoscaler has to be asked: nothing else makes it begin a node
that no actor waits for. It is asked only while places are missing. Asked for those in use as well, it would count any node that offers one
towards them, an idle one as soon as another, and never take that one away.

A gateway that goes is drained first: it stays one of them, since shards still tell it of changes, until its sessions have gone elsewhere.
Those of an earlier life of the supervisor are known by what they say of themselves.

Where there are to be so many and no others (`NumberedGateways`), those too many are drained as well.

What must not live here: how gateways are asked, made and ended, and how Ray is asked (`cluster.actors.supervisor`).
"""

from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

from cluster.core.supervisor_state import match_gateways

REPEAT_MS = 60_000.0
"""Ray is asked again after this while places are missing: a head that begins anew does not know what it was asked."""


class GatewayScale(Struct, frozen=True):
    """How many gateways there may be, and how many sessions each is to have."""

    min: int = 1
    max: int = 4
    sessions: int = 5_000
    """At most, on average."""
    cool_down_ms: float = 300_000.0
    """For so long fewer have to be enough before there is one fewer. A drain sends every client of a gateway elsewhere."""


class Seen(Struct, frozen=True):
    """What is known of a gateway."""

    node: str = ""
    """Where it was last."""
    sessions: int | None = None
    """None: it does not answer."""
    is_draining: bool = False


class Ask(Struct, frozen=True):
    """Effect: ask Ray for nodes that offer so many places in all, until it is asked for another number; 0: for none in particular."""

    places: int


class Drain(Struct, frozen=True):
    """Effect: have a gateway send its clients elsewhere, then say `left`."""

    gateway: str


class Renew(Struct, frozen=True):
    """Effect: make a gateway anew, whose drain is not to go on, then say `renewed`."""

    gateway: str


class NumberedGateways:
    """Gateways of a given number. One that is wanted again while it is drained is made anew: it has sent clients elsewhere, and takes none."""

    def __init__(self, names: Sequence[str]) -> None:
        """Begin with those that there are, or are to be."""
        self.names = list(names)
        """Those there are: one that is drained is one of them until it has left."""
        self.wanted = len(names)
        self._leaving: set[str] = set()
        self._renewed: set[str] = set()
        """Being made anew."""

    @property
    def is_done(self) -> bool:
        """Whether there are as many as are wanted."""
        return not self._leaving and not self._renewed

    def want(self, count: int) -> list[Drain | Renew]:
        """Have so many."""
        self.wanted = count
        wanted = [f"gateway-{n}" for n in range(count)]
        again = [name for name in wanted if name in self._leaving]
        self._leaving.difference_update(again)
        self._renewed.update(again)
        self.names += [name for name in wanted if name not in self.names]
        gone = [name for name in self.names if name not in {*wanted, *self._leaving, *self._renewed}]
        self._leaving.update(gone)
        return [*map(Renew, again), *map(Drain, gone)]

    def left(self, gateway: str) -> None:
        """A gateway is drained, or could not be."""
        if gateway in self._leaving:
            self._leaving.remove(gateway)
            self.names.remove(gateway)

    def renewed(self, gateway: str) -> list[Drain | Renew]:
        """A gateway was made anew; fewer may be wanted by now."""
        self._renewed.discard(gateway)
        return self.want(self.wanted)


class GatewayScaling:
    """See the module."""

    def __init__(self, options: GatewayScale, count: int, now_ms: float) -> None:
        """Begin with `count` gateways that take sessions; an earlier life may have left them."""
        self._options = options
        self.wanted = self._within(count)
        self._needed_ms = now_ms
        """When as many as are wanted were last needed."""
        self._asked: int | None = None
        self._asked_ms = now_ms
        self._leaving: dict[str, bool] = {}
        """Whether it has sent its clients elsewhere."""

    def left(self, gateway: str) -> None:
        """A gateway is drained, or could not be."""
        if gateway in self._leaving:
            self._leaving[gateway] = True

    def unasked(self) -> None:
        """Ray did not hear what it was asked."""
        self._asked = None

    def step(
        self, gateways: Mapping[str, Seen], alive: Collection[str], places: int, now_ms: float
    ) -> tuple[list[str], list[Ask | Drain]]:
        """Return which gateways there should be, and effects.

        Args:
            gateways: Those there are.
            alive: The nodes there are.
            places: How many gateways these have room for.
            now_ms: The time.
        """
        gone = {name for name, has_left in self._leaving.items() if has_left or name not in gateways}
        for name in gone:
            del self._leaving[name]
        staying = {name: each for name, each in gateways.items() if name not in gone}
        drained = {name for name, each in staying.items() if each.is_draining or name in self._leaving}
        self._count([each.sessions for name, each in staying.items() if name not in drained], bool(drained), now_ms)
        effects: list[Ask | Drain] = list(self._ask(places, now_ms))
        if len(staying) < len(gateways):
            # Their names are free when they are ended: until then no other may have them.
            return list(staying), effects
        where = {name: each.node for name, each in staying.items()}
        order = {name: -1 if name in drained else each.sessions or 0 for name, each in staying.items()}
        names = match_gateways(list(staying), where, alive, min(places, self.wanted), order)
        leaving = [name for name in staying if where[name] in alive and (name in drained or name not in names)]
        effects.extend(Drain(name) for name in leaving if name not in self._leaving)
        self._leaving = {name: self._leaving.get(name, False) for name in leaving}
        return [*names, *(name for name in leaving if name not in names)], effects

    def _within(self, count: int) -> int:
        return min(max(count, self._options.min), self._options.max)

    def _count(self, sessions: Collection[int | None], is_draining: bool, now_ms: float) -> None:
        """Find out how many are wanted."""
        known = [count for count in sessions if count is not None]
        needed = self._within(-(-sum(known) // self._options.sessions))
        if needed >= self.wanted:
            self.wanted = needed
            self._needed_ms = now_ms
        elif is_draining:
            self._needed_ms = now_ms  # sessions on their way to another are counted nowhere
        elif len(known) == len(sessions) and now_ms - self._needed_ms >= self._options.cool_down_ms:
            self.wanted -= 1
            self._needed_ms = now_ms

    def _ask(self, places: int, now_ms: float) -> list[Ask]:
        missing = self.wanted if places < self.wanted else 0
        if missing == self._asked and not (missing and now_ms - self._asked_ms >= REPEAT_MS):
            return []
        self._asked, self._asked_ms = missing, now_ms
        return [Ask(missing)]
