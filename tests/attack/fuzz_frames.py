"""Fuzz what clients say over a socket, guided by coverage: `python -m tests.attack.fuzz_frames [-max_total_time=SECONDS]`.

It needs atheris. Arguments are libFuzzer's; an input that fails is written beside, as `crash-...`.
"""

import sys

import atheris

READS = ["client_message", "presence_message", "gateway_mutations", "grants", "query_key", "position", "operation"]
"""Where what clients say is read. To follow all of the core would take longer to begin than the short run lasts."""

with atheris.instrument_imports(include=[f"cluster.core.{name}" for name in READS]):
    from tests.attack.target import KEYS, POSITIONS, RESUMES, Target, one

SEEDS = [
    b'{"type":"subscribe","id":1,"key":["a",{"b":1}],"mode":"patch","since":"p3."}',
    *(b'{"type":"subscribe","id":1,"key":["a"],"since":"%s"}' % since.encode() for since in POSITIONS),
    *(b'{"type":"subscribe","id":1,"prefix":[],"since":"%s"}' % since.encode() for since in POSITIONS),
    b'[{"type":"subscribe","id":1,"prefix":[]},{"type":"pause","id":1},{"type":"resume","id":1}]',
    b'{"type":"set","id":"w","key":["a"],"data":[1.5e300,null,"\\u00e9"],"base_version":1,"merge":"three_way"}',
    b'{"type":"invalidate","id":2,"key":["a"],"exact":true}\0{"type":"get","id":3,"key":["q",1]}',
    b'{"type":"mutate","id":4,"name":"rename","variables":{"id":1},"mutation_id":"m","delay_ms":5}\0{"type":"undo","id":5,"mutation_id":"m"}',
    b'{"type":"presence","id":6,"topic":"doc:1","state":{"a":1},"watch":"count"}\0{"type":"leave","id":7,"topic":"doc:1"}',
    b'{"type":"hello","resume":"t"}\0{"type":"auth","id":1,"token":"t"}\0{"type":"unsubscribe","id":1}\0{"type":"ping"}',
    *(
        b'{"type":"hello","token":"%s"}\0{"type":"auth","id":1,"token":"%s"}' % (key, key)
        for key in map(str.encode, KEYS.values())
    ),
    *(b'{"type":"hello","token":"hk_ann","resume":"%s"}\0{"type":"ping"}' % resume.encode() for resume in RESUMES),
]
FRESH = 500
"""Inputs after which everything begins anew, so that a failure does not need all that came before."""


def begun() -> list[Target]:
    """Return one for anybody, and one that wants keys."""
    return [Target(), Target(has_keys=True)]


def main() -> None:
    """Run until the time is up."""
    targets, inputs = begun(), 0

    def test_one(data: bytes) -> None:
        nonlocal targets, inputs
        inputs += 1
        if inputs % FRESH == 0:
            targets = begun()
        for target in targets:
            one(target, data)

    for seed in SEEDS:
        for target in begun():
            one(target, seed)
    atheris.Setup(sys.argv, test_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
