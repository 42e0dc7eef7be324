"""The digest: equal for equal stores, however they came to be."""

from cluster.core.digest import BYTES, Digest, digest_of
from cluster.core.stored_rows import Row, rows_of
from tests.core.test_stored_rows import entry, stored

A: Row = ("entry", b"a")
B: Row = ("entry", b"b")


def test_order_does_not_count() -> None:
    assert Digest([A, B]).hex == Digest([B, A]).hex
    assert Digest([A]).hex != Digest([B]).hex
    assert Digest([A, A]).hex != Digest([A]).hex


def test_the_table_counts() -> None:
    assert Digest([("entry", b"a")]).hex != Digest([("result", b"a")]).hex


def test_it_is_kept_as_rows_come_and_go() -> None:
    kept = Digest([A])
    kept.add(*B)
    kept.remove(*A)
    assert kept.hex == Digest([B]).hex
    kept.remove(*B)
    assert kept.hex == Digest().hex == "0" * 2 * BYTES


def test_its_definition_does_not_change_unnoticed() -> None:
    assert Digest([A, B]).hex == "e8095874308674ad27b6f0f8f343e0ba"


def test_a_store_has_that_of_its_rows() -> None:
    held = stored()
    before = digest_of(held)
    assert before == Digest(rows_of(held)).hex
    held.entries[0] = entry(held.entries[0].key, version=2)
    assert digest_of(held) != before
