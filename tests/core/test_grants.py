import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.grants import ANYBODY, ApiKeys, Grants, Principal, hashed, line
from cluster.core.query_key import CanonicalKey, KeyMatcher, canonical, parse
from cluster.errors import ConfigError, HarborError, UnauthorizedError

HASH = hashed("hk_x")


@pytest.mark.parametrize(
    ("pattern", "key", "covers"),
    [
        ([], ["anything"], True),
        ([], [], True),
        (["projects"], ["projects", "1"], True),
        (["projects"], ["projects"], True),
        (["projects"], [], False),
        (["projects", "*"], ["projects"], False),
        (["projects", "*", "tasks"], ["projects", "7", "tasks", 1], True),
        (["projects", "*", "tasks"], ["projects", "7", "notes"], False),
        (["*"], ["*"], True),
        (["list", {"team": 1}], ["list", {"team": 1, "page": 2}], True),
        (["list", {"team": 1}], ["list", {"page": 2}], False),
        (["list", {"team": 1}], ["list"], False),
        ([1], [1.0], True),
        ([True], [1], False),
        (["a", "*"], ["a", {"b": 1}], True),
    ],
)
def test_what_a_grant_covers(pattern, key, covers):
    principal = Principal("p", Grants(read=[pattern]))
    for _ in range(2):  # looked at, remembered
        assert principal.may("read", canonical(key)) is covers
    assert not principal.may("write", canonical(key))


elements = st.one_of(st.sampled_from(["a", "b", "*"]), st.dictionaries(st.sampled_from("xy"), st.integers(0, 1)))
keys = st.lists(elements, max_size=3)


@given(grant=keys, prefix=keys, key=keys)
def test_who_may_watch_a_prefix_may_read_all_under_it(grant, prefix, key):
    principal = Principal("p", Grants(read=[grant]))
    if principal.may("read", canonical(prefix)) and KeyMatcher(prefix).matches(canonical(key), parse(canonical(key))):
        assert principal.may("read", canonical(key))


def test_anybody_may_everything():
    ANYBODY.require("read", canonical([]))
    ANYBODY.require("write", canonical(["x"]))
    ANYBODY.require_admin()


def test_a_refusal_names_right_and_key():
    principal = Principal("p", Grants())
    with pytest.raises(HarborError, match=r'no grant to write \["x"\]'):
        principal.require("write", canonical(["x"]))
    with pytest.raises(HarborError, match="admin"):
        principal.require_admin()


def test_a_line_is_read_back_and_holds_no_key():
    grants = Grants([["a", "*"]], [[]], ["tasks.*"], ["room:*"], True)
    text = line("team", "hk_secret", grants)
    assert "hk_secret" not in text
    found = ApiKeys.parse(f"# team\n\n{text}\n").principal("hk_secret")
    assert found is not None
    assert (found.subject, found.grants) == ("team", grants)
    assert ApiKeys.parse(text).principal("hk_Secret") is None
    assert ApiKeys.parse(text).principal("\ud800") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x", "line 1: JSON is malformed"),
        ("\n[]", "line 2: Expected `object`"),
        ('{"id":"a"}', "line 1: Object missing required field `hash`"),
        ('{"id":"a","hash":"md5:1"}', "line 1: hash: expected sha256:"),
        (f'{{"id":"a","hash":"{HASH}","raed":[]}}', "unknown field `raed`"),
        (f'{{"id":"a","hash":"{HASH}","read":["x"]}}', r"Expected `array`, got `str` - at `\$.read\[0\]`"),
        (f'{{"id":"a","hash":"{HASH}","write":[[{"[" * 40}{"]" * 40}]]}}', "line 1: write: a query key may nest"),
        (f'{{"id":"a","hash":"{HASH}"}}\n{{"id":"a","hash":"{hashed("b")}"}}', "line 2: the key 'a' is there twice"),
        (f'{{"id":"a","hash":"{HASH}"}}\n{{"id":"b","hash":"{HASH}"}}', "line 2: the key 'b' is there twice"),
    ],
)
def test_a_faulty_line_is_named(text, reason):
    with pytest.raises(ConfigError, match=reason):
        ApiKeys.parse(text)


@pytest.mark.parametrize(
    ("pattern", "name", "covers"),
    [
        ("save", "save", True),
        ("save", "saved", False),
        ("notes.*", "notes.create", True),
        ("notes.*", "notes", False),
        ("*", "anything", True),
        ("a*b", "axb", False),
    ],
)
def test_which_mutations_a_grant_covers(pattern, name, covers):
    principal = Principal("p", Grants(mutate=["none", pattern]))
    assert principal.may_mutate(name) is covers
    assert not Principal("p", Grants(admin=True)).may_mutate(name)
    if not covers:
        with pytest.raises(HarborError, match=f"no grant to mutate {name}"):
            principal.require_mutation(name)


def test_a_key_that_was_replaced_under_its_id_counts_no_more():
    before = ApiKeys.parse(line("ann", "stolen", Grants(read=[[]]))).recognise("stolen", 0.0)
    same = ApiKeys.parse(line("ann", "stolen", Grants()))
    assert same.current(before, 0.0).grants == Grants()
    with pytest.raises(UnauthorizedError, match="does not count any more"):
        ApiKeys.parse(line("ann", "new", Grants(read=[[]]))).current(before, 0.0)


def test_what_is_remembered_of_a_token_is_little():
    for expires_ms, most in ((None, 5_000), (9e9, 100)):
        principal = Principal("ann", Grants(read=[[]]), expires_ms=expires_ms)
        for number in range(5_000):
            assert principal.may("read", CanonicalKey(f"[{number}]"))
        assert len(principal._covered) <= most
