"""What actors say to each other.

One struct per message, encoded by `cluster.wire.blob` as one msgpack blob per call. Values of entries travel as the
JSON bytes they are stored and sent as, so that nothing on the way decodes them.

Links. Every message that changes its receiver's state carries (`sender`, `incarnation`, `receiver`, `sequence`):
who sends, in which of its lives, to which life of the receiver (0 while unknown), and the how-manieth message that is
on this link. The receiver answers a repeated sequence with the recorded answer and refuses a foreign life with
`Refused`, after which the sender starts the link anew (`core.link`).

It is one thing because the decoder of either end is made of all of them.

What must not live here: behaviour, and the client protocol (`core.protocol`).
"""

from typing import Any

from msgspec import Struct

from cluster.core.operation import Operation
from cluster.core.placement import SlotMap


class Header(Struct, frozen=True, array_like=True):
    """Where a message belongs on its link."""

    sender: str
    incarnation: int
    receiver: int
    """The receiver's incarnation as the sender knows it; 0 opens the link."""
    sequence: int
    """1 on a new link, then rising by one."""
    opening: int = 0
    """How often the sender has started the link over in its life."""


class Refused(Struct, frozen=True, array_like=True, tag="refused"):
    """The message was for another life of the receiver, which now lives as `incarnation`."""

    incarnation: int


# --- ingestion -> coordinator -> shard ---------------------------------------------------------------------------


class FeedRange(Struct, frozen=True, array_like=True):
    """Which events of a feed a part holds: numbers `first`..`last`, after `previous` (0: none sent to this shard before).

    Numbers count the events of a sequence (`core.feed`), so a feed's have gaps, and `previous` chains them. An empty range
    (`last` = `first` - 1) says what should have arrived by now, so that a quiet feed's loss shows too: with `previous` > 0
    that the last number sent was `previous`; with `previous` 0 that `feed`, here a source or one channel of it, begins
    `incarnation`, and that events may have passed unseen before.
    """

    feed: str
    incarnation: int
    first: int
    last: int
    previous: int

    @property
    def is_beginning(self) -> bool:
        """Whether it says that an incarnation begins, and nothing of events."""
        return self.first > self.last and not self.previous


class KeyOperations(Struct, frozen=True, array_like=True):
    """The folded operations of one key; `count` is how many they were before folding."""

    key: str
    """Canonical."""
    operations: list[Operation]
    count: int
    origin: int = -1
    """Number of the rule that made the last of them (`Compiled.origins`); -1: unknown."""


class Checkpoint(Struct, frozen=True, array_like=True):
    """From where a sequence of events can go on: everything up to event `number` is committed in all shards."""

    sequence: str
    """A source, or `source/channel`."""
    incarnation: int
    number: int
    id: str | int | None
    """The upstream's, of event `number`; None: forget it, the sequence has ended."""
    is_dense: bool = False
    """The upstream's ids are integers and count up by one."""


class Claim(Struct, frozen=True, array_like=True):
    """An ingestor takes over its sources' feeds, or passes on what a dead coordinator may have lost: what was committed of them?

    It goes the way that events go, so that all which was on that way is committed before it is answered (`Claimed`).
    """

    ingestor: str
    number: int
    """Rises with every claim; what answers an older one is late."""
    sources: list[str]


class Part(Struct, frozen=True, array_like=True):
    """What one blob holds for one shard in one batching profile."""

    shard: int
    profile: int
    """Index into the batching profiles of the configuration; 0 is `batching`."""
    feeds: list[FeedRange]
    keys: list[KeyOperations]
    oldest_ms: float
    """Receipt of the oldest event folded in."""
    checkpoints: list[Checkpoint] = []
    claim: Claim | None = None


class Blob(Struct, frozen=True, array_like=True, tag="blob"):
    """Ingestion -> coordinator."""

    header: Header
    parts: list[Part]
    closes: bool = False
    """Windows close with this: nothing follows it for a while (`slot_move`)."""


class BlobTaken(Struct, frozen=True, array_like=True, tag="blob_taken"):
    """The coordinator has folded the blob (which is not a commit). `window_left_ms`: until its current window closes."""

    incarnation: int
    window_left_ms: float
    committed: int = 0
    """Sequence, on this link, up to which shards have committed every blob."""


class Full(Struct, frozen=True, array_like=True, tag="full"):
    """The receiver is over its high-water mark and has not taken the message: send it again in `retry_ms`."""

    retry_ms: float


class Batch(Struct, frozen=True, array_like=True, tag="batch"):
    """Coordinator -> shard: what a window folded."""

    header: Header
    feeds: list[FeedRange]
    keys: list[KeyOperations]
    oldest_ms: float
    checkpoints: list[Checkpoint] = []
    claims: list[Claim] = []


class BatchCommitted(Struct, frozen=True, array_like=True, tag="batch_committed"):
    """The shard has applied the batch."""

    incarnation: int
    offset: int


class Claimed(Struct, frozen=True, array_like=True, tag="claimed"):
    """Shard -> ingestion: what is committed here of the feeds that claim `number` named."""

    shard: int
    number: int
    cursors: list[tuple[str, int, int]]
    """(feed, incarnation, last number)."""
    checkpoints: list[Checkpoint]
    incarnation: int = 0
    """Of the shard: of a life that another has followed this is void."""


class Announce(Struct, frozen=True, array_like=True, tag="announce"):
    """Any actor -> those that hold links to it: `sender` lives anew, as `incarnation`; start those links over."""

    sender: str
    incarnation: int


class Noted(Struct, frozen=True, array_like=True, tag="noted"):
    """The announcement was heard."""

    incarnation: int


class SourceStates(Struct, frozen=True, array_like=True, tag="sources"):
    """Ingestion -> gateway: the state of every source it reads, as often as one changes, and again until it is heard."""

    sender: str
    number: int
    """Rises with every change; a lower one is late."""
    states: list[tuple[str, str]]
    """(source, connecting | connected | reconnecting | failed)."""


class Members(Struct, frozen=True, array_like=True, tag="members"):
    """Supervisor -> ingestors and shards: which ingestors there are. Answer: `Noted`."""

    epoch: int
    """Rises whenever `ingestors` changes."""
    ingestors: list[str]
    previous: list[str] = []
    """Those before, while what they read may still be with them; empty: everything is where it belongs."""


class Gateways(Struct, frozen=True, array_like=True, tag="gateways"):
    """Supervisor -> ingestors and shards: which gateways there are, where that changes. Answer: `Noted`."""

    names: list[str]


class Take(Struct, frozen=True, array_like=True, tag="take"):
    """Ingestor -> the one before it: hand over these units, as (source, or source/channel). Answer: `Noted`, then `HandOver`."""

    sender: str
    epoch: int
    units: list[str]
    life: int
    """Of the sender: the answer is for that one."""


class Moved(Struct, frozen=True, array_like=True):
    """Where a unit's sequence stands: everything up to event `number` is committed, and no more was taken."""

    unit: str
    is_known: bool
    """False: the sender does not have it, and cannot say."""
    incarnation: int = 0
    taken: int = 0
    """The last event that was ever taken: above `number` where the upstream was just repeating, or where later events bore no id."""
    number: int = 0
    """Of the last event with an id."""
    id: str | int | None = None
    is_dense: bool = False


class HandOver(Struct, frozen=True, array_like=True, tag="hand_over"):
    """Ingestor -> the next one: what was asked for by `Take`. Answer: `Noted`."""

    sender: str
    epoch: int
    moved: list[Moved]
    life: int
    """Of the receiver, which asked: a later one does not go on from here."""


class Demand(Struct, frozen=True, array_like=True, tag="demand"):
    """Shard -> ingestion: channels to be joined (`add`) and no longer needed (`drop`), as (source, channel)."""

    header: Header
    epoch: int
    """Of the `Members` by which the shard chose the ingestor; another one's is asked to try again."""
    whole: bool
    """`add` is everything this shard needs; forget what it said before."""
    add: list[tuple[str, str]]
    drop: list[tuple[str, str]]


class DemandMet(Struct, frozen=True, array_like=True, tag="demand_met"):
    """The upstream was asked to join; `joined` lists the added channels whose connection was open."""

    incarnation: int
    joined: list[tuple[str, str]]


# --- gateway -> shard --------------------------------------------------------------------------------------------


class Watch(Struct, frozen=True, array_like=True, tag="watch"):
    """Replicate what `key` names to this gateway: one entry, or with `prefix` every entry that matches it, for good."""

    id: int
    """Unique among this gateway's watches and requests."""
    key: str
    prefix: bool


class Unwatch(Struct, frozen=True, array_like=True, tag="unwatch"):
    """End the watch `id`."""

    id: int


class Rest(Struct, frozen=True, array_like=True, tag="rest"):
    """Everybody behind the watch `id` has paused (or, without `rests`, no longer): it does not keep upstream channels joined."""

    id: int
    rests: bool


class Missed(Struct, frozen=True, array_like=True, tag="missed"):
    """Which entries under `key` changed after the position (`epoch`, `offset`)? Answered by `MissedKeys`, in link order."""

    id: int
    key: str
    prefix: bool
    epoch: int
    """0: the position does not name this shard."""
    offset: int
    map: int = 0
    """Epoch of the slot map that the position was told under, where that was another; what is not named counts from that map's end."""
    gone: list[tuple[int, int, int]] | None = None
    """Not about the shard itself but those that are no more, of which it keeps the history: what the position says of them, as (shard, epoch,
    offset)."""


class Verify(Struct, frozen=True, array_like=True, tag="verify"):
    """Which of these replicas are not what is held here? Answered by `Verified`, in link order."""

    id: int
    held: list[tuple[str, int]]
    """(key, version; 0: no data)."""


class Mend(Struct, frozen=True, array_like=True, tag="mend"):
    """These replicas are not what is held here: send what is, as for the first time. It has no answer."""

    id: int
    held: list[tuple[str, int]]
    """(key, version; 0: no data)."""


class Read(Struct, frozen=True, array_like=True, tag="read"):
    """Read one entry; `fetch` is auto | never | force. Answer: `EntryView` or `Failure`."""

    id: int
    key: str
    fetch: str = "auto"
    page: str = ""
    """next | previous: load one more page of an infinite list."""


class Write(Struct, frozen=True, array_like=True, tag="write"):
    """Replace an entry's data. Answer: `Written` or `Failure`."""

    id: int
    request_id: str
    """Repeats within 10 minutes get the recorded answer."""
    key: str
    data: bytes
    base_version: int | None = None
    ack: str = "memory"
    """How safe it is to be when it is answered (`acknowledgement`); "": as safe as can be."""
    merges: bool = False
    """Where the entry is at another version than `base_version`, merge `data` with what it is now (`three_way_merge`)."""


class Edit(Struct, frozen=True, array_like=True, tag="edit"):
    """Apply an RFC 6902 patch (JSON bytes) or operations to an entry, all or nothing. Answer: `Written` or `Failure`."""

    id: int
    request_id: str
    key: str
    patch: bytes | None
    operations: list[Operation] | None
    base_version: int | None = None
    ack: str = "memory"


class Erase(Struct, frozen=True, array_like=True, tag="erase"):
    """Remove an entry. Answer: `Written` or `Failure`."""

    id: int
    request_id: str
    key: str
    base_version: int | None = None
    ack: str = "memory"


class Act(Struct, frozen=True, array_like=True, tag="act"):
    """Do something with every entry that a filter matches. Answer: `Matched`."""

    id: int
    action: str
    """invalidate | refetch | reset | cancel | remove."""
    key: str
    exact: bool = False
    which: str = "all"
    """active | inactive | all."""
    refetch: str = "active"
    """Which of those that were invalidated to fetch again: active | inactive | all | none."""
    stale: bool | None = None
    fetch_status: str | None = None
    """idle | fetching | paused."""


class Ping(Struct, frozen=True, array_like=True, tag="ping"):
    """Say that you are there. Answer: `Matched`, of all entries."""

    id: int


class ListKeys(Struct, frozen=True, array_like=True, tag="keys"):
    """List entries that match `prefix`, in order of canonical key, after `after`. Answer: `KeyList`."""

    id: int
    prefix: str
    after: str
    limit: int
    contains: str = ""
    """Only keys with this in their text."""


class ListBranches(Struct, frozen=True, array_like=True, tag="branches"):
    """List the elements that follow `prefix`, in order of their text, after `after`. Answer: `BranchList`."""

    id: int
    prefix: str
    after: str
    limit: int


class Mutate(Struct, frozen=True, array_like=True, tag="mutate"):
    """Begin a mutation; for its home shard. Answer: `MutationView` (as it is, where it is known already) or `Failure`."""

    id: int
    mutation: str
    name: str
    variables: bytes
    """JSON object."""
    scope: str
    delay_ms: float | None = None
    """None: as it is declared."""
    author: str = ""
    """The session that begins it, by its public identity; "": nobody comes back for it."""
    account: str = ""
    """A hash of whom its author is counted as; "": everybody is one."""


class Undo(Struct, frozen=True, array_like=True, tag="undo"):
    """Cancel a mutation that was not sent. Answer: `MutationView` or `Failure`; shards that are not its home do not know it."""

    id: int
    mutation: str


MutationPlace = tuple[int, int, str]
"""Where a mutation stands in listings: (when it began, its number in its home, its id)."""


class ListMutations(Struct, frozen=True, array_like=True, tag="mutations"):
    """List the mutations whose home this shard is: one by its id, or those of some statuses. Answer: `MutationList`.

    Those of an `author` are asked for by the gateway to which this session came back: it is told their statuses from then on.
    """

    id: int
    mutation: str = ""
    statuses: list[str] = []
    """Empty: all."""
    newest: int = 0
    """At most so many, the newest; 0: the oldest."""
    author: str = ""
    """Those that this session began: not settled, or lately."""
    limit: int = 0
    """Of the oldest, at most so many, after `after`."""
    after: MutationPlace = (0, 0, "")
    names: list[str] | None = None
    """Patterns as in grants, of which their names meet one; None: any name."""
    tenant: str = ""
    """What their ids begin with."""


# --- presence, gateway -> home (a shard) ---


class PresenceMember(Struct, frozen=True, array_like=True):
    """A session that is present in a topic."""

    member: str
    """The session."""
    subject: str
    state: bytes
    """JSON."""
    last_active: int
    """Unix ms of its last `presence`; told with states and snapshots, not by itself."""


class PresenceNews(Struct, frozen=True, array_like=True, tag="presence_news"):
    """What became of a gateway's members since its last news, folded; also its heartbeat. It has no answer.

    With `begins` what follows, up to `ends`, is all that this life of the gateway has: members not among it are gone.
    """

    id: int
    life: int
    """Of the gateway: what an earlier one had may still be resumed here or elsewhere."""
    begins: bool
    ends: bool
    put: list[tuple[str, int, PresenceMember]]
    """(topic, generation, member): who joined or has another state. Of two claims to a member the higher generation counts."""
    left: list[tuple[str, str]]
    """(topic, member)."""
    heard: list[tuple[str, list[str]]]
    """(topic, members) that have said they are there, and nothing else."""
    heard_at: int
    watches: list[tuple[str, int, str]]
    """(topic, number, members | count | "" to end it); `PresenceDiff` names the number."""


class PresenceResume(Struct, frozen=True, array_like=True, tag="presence_resume"):
    """A session has come back to this life of this gateway: its memberships are here now. Answer: `Restored`."""

    id: int
    life: int
    member: str


class ListMembers(Struct, frozen=True, array_like=True, tag="members_of"):
    """List members of a topic, in order of their ids, after `after`. Answer: `MemberList`, as soon as all of them are known."""

    id: int
    topic: str
    after: str
    limit: int


class ListTopics(Struct, frozen=True, array_like=True, tag="topics"):
    """List the topics with the most members. Answer: `TopicList`."""

    id: int
    limit: int


Request = (
    Mutate
    | Undo
    | ListMutations
    | Watch
    | Unwatch
    | Rest
    | Missed
    | Verify
    | Mend
    | Read
    | Write
    | Edit
    | Erase
    | Act
    | Ping
    | ListKeys
    | ListBranches
    | PresenceNews
    | PresenceResume
    | ListMembers
    | ListTopics
)


class Requests(Struct, frozen=True, array_like=True, tag="requests"):
    """Gateway -> shard: everything asked since the last call."""

    header: Header
    items: list[Request]
    map: int = 0
    """Epoch of the slot map by which the shard was chosen; 0: of none. With an older one than the shard's it answers `Outdated`, as to
    what is another shard's."""


class Outdated(Struct, frozen=True, array_like=True, tag="outdated"):
    """The message was made by a slot map that counts no longer, or not by it, and was not taken; this one does."""

    map: SlotMap


class EntryView(Struct, frozen=True, array_like=True, tag="entry"):
    """An entry as readers see it."""

    key: str
    version: int
    """0: it never had data."""
    data: bytes | None
    """JSON; None while absent."""
    data_updated_at: int
    status: str
    """pending | success | error."""
    fetch_status: str
    """idle | fetching | paused."""
    is_invalidated: bool = False
    stale_at: float | None = None
    """Unix ms from when the data counts as stale; None: never."""
    error: tuple[str, str] | None = None
    """(code, message) of the last failed fetch since the last success."""
    is_offline: bool = False
    """Its service cannot be reached."""
    origin: str = ""
    """Where the data came from last, see `shard_entry`."""
    fetched_at: int = 0
    """Unix ms of the last successful fetch; 0: never."""
    doubt: tuple[str, int] | None = None
    """(why, since when) it is invalidated."""


class Failure(Struct, frozen=True, array_like=True, tag="failure"):
    """A request failed and changed nothing."""

    code: str
    message: str
    current: EntryView | None = None
    """The entry that a conditional write met; None: there is none."""
    conflicts: list[str] | None = None
    """Where a merge failed, as JSON Pointers into `current`."""
    status: str = ""
    """Of the mutation, where that is why it cannot be undone."""
    limit: tuple[str, float] | None = None
    """The limit that was met: its name and value."""


class Written(Struct, frozen=True, array_like=True, tag="written"):
    """A write was committed."""

    version: int
    is_merged: bool = False
    """What was written is not what was sent, but merged with what the entry was."""


class Matched(Struct, frozen=True, array_like=True, tag="matched"):
    """How many entries the filter of an `Act` met."""

    count: int


class KeyInfo(Struct, frozen=True, array_like=True):
    """A row of a key listing."""

    key: str
    version: int
    status: str
    is_stale: bool
    gateways: int
    """That watch it."""


class KeyList(Struct, frozen=True, array_like=True, tag="key_list"):
    """At most `limit` rows; `more` where others follow."""

    keys: list[KeyInfo]
    more: bool


class BranchList(Struct, frozen=True, array_like=True, tag="branch_list"):
    """At most `limit` rows (`key_tree`); `more` where others follow."""

    branches: list[tuple[str, int, bool]]
    more: bool


class MutationView(Struct, frozen=True, array_like=True, tag="mutation"):
    """A mutation as clients see it; also told unasked, as its status changes, to the gateway that began it."""

    mutation: str
    name: str
    status: str
    created_at: int
    """Unix ms, as the next."""
    due_at: int = 0
    """Until when it can be undone; 0: it was not delayed."""
    result: bytes | None = None
    """The service's answer, JSON."""
    error: tuple[str, str] | None = None
    """(code, message)."""
    number: int = 0
    """In its home, in the order they began."""

    @property
    def place(self) -> MutationPlace:
        """Return where it stands in listings."""
        return self.created_at, self.number, self.mutation


class MutationList(Struct, frozen=True, array_like=True, tag="mutation_list"):
    """Mutations, the oldest first; `more` where others follow."""

    mutations: list[MutationView]
    more: bool = False


class MemberList(Struct, frozen=True, array_like=True, tag="member_list"):
    """At most `limit` members of the `count` there are; `more` where others follow."""

    count: int
    members: list[PresenceMember]
    more: bool


class TopicList(Struct, frozen=True, array_like=True, tag="topic_list"):
    """At most `limit` topics with how many members each has; `count`: topics there are."""

    topics: list[tuple[str, int]]
    count: int


class Restored(Struct, frozen=True, array_like=True, tag="restored"):
    """What this home knew of a session that came back."""

    memberships: list[tuple[str, int, PresenceMember]]
    """(topic, generation, member)."""


Payload = (
    EntryView
    | Failure
    | Written
    | Matched
    | KeyList
    | BranchList
    | MutationView
    | MutationList
    | MemberList
    | TopicList
    | Restored
)


class Answers(Struct, frozen=True, array_like=True, tag="answers"):
    """The shard's answers that are ready; others follow as `Answered` items."""

    incarnation: int
    epoch: int
    items: list[tuple[int, Payload]]
    """(request id, answer)."""


# --- shard -> gateway --------------------------------------------------------------------------------------------


class Snapshot(Struct, frozen=True, array_like=True, tag="snapshot"):
    """The entry in full; `watch` is the watch that asked for it. `version` 0 and no data: it is declared and being fetched."""

    watch: int
    entry: EntryView


class Absent(Struct, frozen=True, array_like=True, tag="absent"):
    """An exact watch of a key that has no entry is live: a first `Change` will have `from_version` 0."""

    watch: int


class Ready(Struct, frozen=True, array_like=True, tag="ready"):
    """Every entry under a prefix watch has been sent."""

    watch: int
    offset: int
    """When the watch was heard. A replica no newer than that, of which no snapshot came, is of an entry that is gone."""


class Change(Struct, frozen=True, array_like=True, tag="change"):
    """An entry's step from one version to a later one, as `patch` (RFC 6902, JSON) or, where that is None, as `data`."""

    key: str
    from_version: int
    """0: the entry is new, or had no data."""
    version: int
    data: bytes | None
    patch: bytes | None
    coalesced: int
    data_updated_at: int
    stale_at: float | None = None
    origin: str = ""
    fetched_at: int = 0
    mutations: list[str] = []
    """Whose operations came into the view with this step, or left it."""


class Removed(Struct, frozen=True, array_like=True, tag="removed"):
    """The entry is gone; `version` is greater than its last."""

    key: str
    version: int


class Meta(Struct, frozen=True, array_like=True, tag="meta"):
    """An entry's state changed but not its data."""

    key: str
    status: str
    fetch_status: str
    is_invalidated: bool
    stale_at: float | None
    error: tuple[str, str] | None
    invalidated: bool
    """It was invalidated just now: watchers are told."""
    is_offline: bool = False
    doubt: tuple[str, int] | None = None
    data_updated_at: int = 0
    fetched_at: int = 0
    """Both move when a fetch brings what was there already."""
    origin: str = ""


class Reset(Struct, frozen=True, array_like=True, tag="reset"):
    """Changes of this entry may have been lost: watchers are told, and get it anew."""

    entry: EntryView


class MissedKeys(Struct, frozen=True, array_like=True, tag="missed_keys"):
    """Answer to `Missed`: (key, its version at that position) of every entry that changed since, removed ones included.

    `reset`: the history does not reach back that far, or the position is of another epoch.
    """

    id: int
    reset: bool
    keys: list[tuple[str, int]]


class Verified(Struct, frozen=True, array_like=True, tag="verified"):
    """Answer to `Verify`: (key, version; 0: no data) of every entry that is at another version after the items before this one."""

    id: int
    keys: list[tuple[str, int]]


class ServiceState(Struct, frozen=True, array_like=True, tag="service"):
    """A service was lost, or is back, as this shard sees it."""

    service: str
    is_offline: bool


class Answered(Struct, frozen=True, array_like=True, tag="answered"):
    """A late answer to a request."""

    id: int
    payload: Payload


class PresenceDiff(Struct, frozen=True, array_like=True, tag="presence_diff"):
    """What became of a watched topic since the last one, folded. A first one, in pieces, lists everybody."""

    topic: str
    number: int
    """Of the watch; of an earlier one it is void."""
    members: list[PresenceMember]
    """Who joined or has another state."""
    left: list[str]
    count: int
    whole: bool
    """With this everybody was listed since the watch began: who was not is gone."""


class PresenceWanted(Struct, frozen=True, array_like=True, tag="presence_wanted"):
    """The home does not know, or has given up, what members this gateway has: it is to say all of them."""


Item = (
    Snapshot
    | Absent
    | Ready
    | Change
    | Removed
    | Meta
    | Reset
    | MissedKeys
    | Verified
    | ServiceState
    | Answered
    | MutationView
    | PresenceDiff
    | PresenceWanted
)


class ChangeSet(Struct, frozen=True, array_like=True, tag="change_set"):
    """Shard -> gateway. With no items it is the heartbeat."""

    header: Header
    epoch: int
    offset: int
    """After `items` the replicas are at this offset; -1 where the set was split and more must come first."""
    oldest_ms: float
    """Receipt of the oldest event folded in; 0: none."""
    items: list[Item]


class ChangeSetTaken(Struct, frozen=True, array_like=True, tag="change_set_taken"):
    """The gateway has applied the change set to its replicas."""

    incarnation: int


# --- shard -> shard ----------------------------------------------------------------------------------------------


class Lay(Struct, frozen=True, array_like=True, tag="lay"):
    """Show a mutation's operations over the bases of these keys; takes the place of what was laid for it before."""

    mutation: str
    number: int
    """Of one home, those with higher numbers go over the others."""
    operations: list[tuple[str, Operation]]
    """By key; none for a shard that is only to know of the temporary id."""
    temporary: str = ""
    """The id of what it creates, until that has another; "": it creates nothing of the kind."""
    restores: bool = False
    """Should it fail, the bases are put back as they are now."""
    name: str = ""
    variables: bytes = b"{}"
    """JSON object. With these and `name` events of streams can be told that are of the mutation."""
    created_ms: float = 0.0
    scope: str = ""
    """Whose slot says which shard is its home."""


class Lift(Struct, frozen=True, array_like=True, tag="lift"):
    """A mutation is settled: take its operations out of views, and apply what lasts of it to bases."""

    mutation: str
    lasting: list[tuple[str, Operation]]
    """Its optimistic operations, where it succeeded; an item that a stream has brought already stays as that has it."""
    result: list[tuple[str, Operation]]
    temporary: str = ""
    """The temporary id of what it was to create."""
    renamed: Any = None
    """The id which that has now; None: there is none."""
    failed: bool = False
    created_ms: float = 0.0


class Overlays(Struct, frozen=True, array_like=True, tag="overlays"):
    """Home shard -> the others. The first on a link has all that counts; what came on the last is void."""

    header: Header
    items: list[Lay | Lift]


class OverlaysTaken(Struct, frozen=True, array_like=True, tag="overlays_taken"):
    """The views show it."""

    incarnation: int


# --- shard -> its standby, and roles -----------------------------------------------------------------------------


class Check(Struct, frozen=True, array_like=True):
    """A digest of rows of a store: those of one table behind `after`, up to `until`."""

    table: int
    after: bytes
    until: bytes
    """b"": to the table's end."""
    digest: bytes


class Replicate(Struct, frozen=True, array_like=True, tag="replicate"):
    """Primary -> standby: transactions it has committed, in order. With none it is the heartbeat. Answer: `Replicated`, or `Refused`."""

    epoch: int
    """Of the primary's role."""
    life: int
    """Of the standby it is for: what was sent to an earlier one does not count."""
    first: int
    """Number of the first of `records`, from 1 with each life of the standby; 1 means: what was there before goes."""
    records: list[bytes]
    """A `Transaction` each, msgpack."""
    is_whole: bool
    """With these the standby has all, and the primary lets nothing out any more that the standby has not."""
    check: Check | None = None
    """What the primary's store has, after these."""


class Replicated(Struct, frozen=True, array_like=True, tag="replicated"):
    """The standby has committed every record up to `number`; with it the primary's lease is renewed."""

    life: int
    epoch: int
    number: int


class Elsewhere(Struct, frozen=True, array_like=True, tag="elsewhere"):
    """Answer of an actor that is not the primary of its shard, and so took nothing. `primary`: who is, as far as it knows; "": it does not."""

    primary: str


class Primary(Struct, frozen=True, array_like=True, tag="primary"):
    """A shard's primary -> all who may call it: from `incarnation` on it is `actor`. Answer: `Noted`."""

    shard: str
    """Its address, as `shard-3`."""
    actor: str
    incarnation: int


# --- moves of slots ----------------------------------------------------------------------------------------------


class Rebalance(Struct, frozen=True, array_like=True, tag="rebalance"):
    """Supervisor -> anyone: do this part of a move to the slot map `map` (`slot_move`). It is said again until it is done."""

    phase: str
    map: SlotMap
    attempt: int
    """Rises with every beginning of a move: what belongs to an earlier one is void."""


class Progress(Struct, frozen=True, array_like=True, tag="progress"):
    """How far the one that was told `Rebalance` is."""

    map: SlotMap | None
    """That counts here; None: none was told yet."""
    is_done: bool
    is_held: bool = False
    """It holds what it would send, or refuses what is sent to it."""
    entries: int = 0
    """Sent in this move, as the next."""
    bytes: int = 0
    next: SlotMap | None = None
    """To which slots move."""
    lacks: bool = False
    """It has not been sent all that it is to adopt: it was, perhaps, in an earlier life."""
    attempt: int = 0
    """The last that it has heard of."""


class SlotSlice(Struct, frozen=True, array_like=True, tag="slot_slice"):
    """Shard -> shard: a part of what moves. The first on a link begins anew."""

    header: Header
    epoch: int
    """Of the map to which the slots move."""
    content: bytes
    """A `slot_slice.Content`."""


class SliceTaken(Struct, frozen=True, array_like=True, tag="slice_taken"):
    """The receiver keeps it until the map counts; or has it, since that does."""

    incarnation: int


class Measure(Struct, frozen=True, array_like=True, tag="measure"):
    """Supervisor -> any actor, about every two seconds while somebody watches. Answer: `Measured`."""


class Measured(Struct, frozen=True, array_like=True, tag="measured"):
    """An actor's counters and what it says of itself, encoded as each is where it is asked for alone."""

    samples: bytes
    status: bytes


Message = (
    Replicate
    | Primary
    | Rebalance
    | SlotSlice
    | Overlays
    | Announce
    | Blob
    | Batch
    | Claimed
    | Gateways
    | Members
    | Take
    | HandOver
    | Demand
    | SourceStates
    | Requests
    | ChangeSet
    | Measure
)
Answer = (
    Replicated
    | Elsewhere
    | Progress
    | SliceTaken
    | Outdated
    | Refused
    | Full
    | Noted
    | BlobTaken
    | BatchCommitted
    | DemandMet
    | Answers
    | ChangeSetTaken
    | OverlaysTaken
    | Measured
)


# --- effects -----------------------------------------------------------------------------------------------------


class Send(Struct, frozen=True):
    """Effect: call `to` with `message`; feed what comes back to `answered`, or the lack of an answer to `unanswered`."""

    to: str
    message: Any
    """A `Message`; `Any` because effects never leave the process."""
