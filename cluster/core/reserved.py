"""Reserved entries: what the cluster says of itself, under the key root `"$harbor"`.

They are entries for those who subscribe to one by its exact key, with the admin grant, and for nobody else: no shard holds them, so no
prefix, listing or tenant has them, nothing stores them, and nobody writes them. A gateway keeps one while somebody there watches it.
A token of theirs holds no position, so whoever comes back with one begins again.

What must not live here: what they say (`overview`, `chronicle`), who gathers it (`cluster.actors`).
"""

from collections.abc import Sequence
from typing import Any

from cluster.core.query_key import CanonicalKey, canonical, checked
from cluster.errors import ErrorCode, RequestError

ROOT = "$harbor"
NAMES = ("overview", "streams", "notices", "mutations", "presence")
OWN = -1
"""In place of a shard's number: the gateway itself says what there is."""
KEYS: dict[str, CanonicalKey] = {name: canonical([ROOT, name]) for name in NAMES}
_BY_KEY = {key: name for name, key in KEYS.items()}


def is_reserved(key: Sequence[Any]) -> bool:
    """Whether a key, or a prefix, is under the reserved root."""
    return bool(key) and key[0] == ROOT


def unreserved(key: Any) -> CanonicalKey:
    """Return the canonical key of what somebody else than the cluster may make.

    Raises:
        RequestError: `BAD_KEY`, it is reserved; or it can be no key (`query_key.checked`, `canonical`).
    """
    if is_reserved(checked(key)):
        raise RequestError(ErrorCode.BAD_KEY, f'keys under "{ROOT}" are the cluster\'s own')
    return canonical(key)


def reserved(key: CanonicalKey, parsed: Sequence[Any], *, prefix: bool) -> bool:
    """Whether a subscription is to a reserved entry.

    Raises:
        RequestError: `UNSUPPORTED`, it is to a prefix of them; `NOT_FOUND`, there is none of that name.
    """
    if not is_reserved(parsed):
        return False
    if prefix:
        raise RequestError(ErrorCode.UNSUPPORTED, f'entries under "{ROOT}" are subscribed to one by one')
    if key not in _BY_KEY:
        raise RequestError(ErrorCode.NOT_FOUND, f'under "{ROOT}" there are: {", ".join(NAMES)}')
    return True
