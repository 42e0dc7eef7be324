import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.grants import ApiKeys, Grants, Principal, hashed, line
from cluster.core.query_key import MAX_KEY_BYTES, canonical, parse
from cluster.core.tenant import Tenant, is_name, of_topic
from cluster.errors import ConfigError, HarborError, RequestError

ACME, GLOBEX, NOBODY = Tenant("acme"), Tenant("globex"), Tenant()
keys = st.lists(st.one_of(st.text(max_size=5), st.integers(), st.lists(st.text(max_size=3), max_size=2)), max_size=3)


@given(key=keys)
def test_keys_go_in_and_come_out(key):
    text = canonical(key)
    rooted = ACME.inside(text)
    assert rooted == canonical(["acme", *key])
    assert ACME.outside(rooted) == text
    assert ACME.holds(rooted)
    assert not GLOBEX.holds(rooted)
    assert NOBODY.inside(text) == NOBODY.outside(text) == text


def test_names_that_begin_alike_are_different():
    assert not Tenant("acm").holds('["acme",1]')
    assert not Tenant("acme").holds('["acme2",1]')
    assert Tenant("acm").outside('["acme",1]') == '["acme",1]'
    assert Tenant("acme").outside('["acmeX"]') == '["acmeX"]'


def test_what_is_another_s_is_left_as_it_is():
    assert ACME.outside('["globex",1]') == '["globex",1]'


@given(after=st.text(max_size=12))
def test_a_cursor_may_be_anything(after):
    assert NOBODY.cursor(after) == after
    assert ACME.cursor(after).startswith('["acme"') or not after.startswith("[")


@pytest.mark.parametrize("key", [[], ["a"], ["a", 1], [{"x": 1}]])
def test_a_cursor_is_a_key(key):
    assert ACME.cursor(canonical(key)) == ACME.inside(canonical(key))


def test_a_key_that_its_tenant_makes_too_long_is_refused():
    longest = canonical(["x" * (MAX_KEY_BYTES - 4)])
    with pytest.raises(RequestError, match=f"may have {MAX_KEY_BYTES - 7} bytes") as raised:
        ACME.inside(longest)
    assert raised.value.details == {"limit": "key", "value": MAX_KEY_BYTES - 7}
    parse(ACME.inside(canonical(["x" * (MAX_KEY_BYTES - 11)])))


@given(topic=st.text(max_size=8), mutation=st.text(alphabet="abc/", min_size=1, max_size=8))
def test_topics_and_mutations(topic, mutation):
    assert ACME.outside_topic(ACME.inside_topic(topic)) == topic
    assert of_topic(ACME.inside_topic(topic)) == ("acme", topic)
    assert ACME.outside_id(ACME.inside_id(mutation)) == mutation
    assert ACME.has_id(ACME.inside_id(mutation))
    assert not GLOBEX.has_id(ACME.inside_id(mutation))
    assert NOBODY.has_id(mutation)


def test_texts_name_what_clients_know():
    assert ACME.text('no entry ["acme","a",1], nor ["acme"]') == 'no entry ["a",1], nor []'
    assert ACME.text("no mutation acme/m1") == "no mutation m1"
    assert NOBODY.text('no entry ["acme"]') == 'no entry ["acme"]'


@pytest.mark.parametrize("name", ["acme", "org_1", "a:b@c.d-e", "0", "x" * 64])
def test_names(name):
    assert is_name(name)


def test_grants_are_under_the_tenant():
    ann = Principal("ann", Grants(read=[[]], write=[["*"]], presence=["*"], admin=True), tenant=ACME)
    assert ann.may("read", canonical(["acme"]))
    assert ann.may("read", canonical(["acme", "x"]))
    for key in ([], ["globex"], ["globex", "x"], ["x"], ["*"], ["*", "x"], [["acme"]], [{"0": "acme"}]):
        assert not ann.may("read", canonical(key)), key
        assert not ann.may("write", canonical(key)), key
    assert not ann.may("write", canonical(["acme"]))
    assert ann.may("write", canonical(["acme", "x"]))
    assert ann.may_be_present(ACME.inside_topic("doc:1"))
    for topic in ("doc:1", GLOBEX.inside_topic("doc:1"), "acme", "acme/doc:1"):
        assert not ann.may_be_present(topic)
    with pytest.raises(HarborError, match="of no tenant"):
        ann.require_admin()


def test_a_refusal_names_the_key_as_it_was_said():
    ann = Principal("ann", Grants(), tenant=ACME)
    with pytest.raises(HarborError, match=r'no grant to read \["x"\]'):
        ann.require("read", ACME.inside(canonical(["x"])))
    with pytest.raises(HarborError, match=r"presence topic doc:1$"):
        ann.require_presence(ACME.inside_topic("doc:1"))


def test_keys_of_tenants():
    made = line("ann", "k", Grants(read=[[]]), "acme")
    found = ApiKeys.parse(made, tenants=True).principal("k")
    assert found is not None
    assert found.tenant.name == "acme"
    with pytest.raises(ConfigError, match="line 1: tenant: required"):
        ApiKeys.parse(line("ann", "k", Grants()), tenants=True)
    operator = ApiKeys.parse(line("op", "k", Grants(admin=True)), tenants=True).principal("k")
    assert operator is not None
    assert operator.is_operator
    with pytest.raises(ConfigError, match="line 1: tenant: expected 1 to 64"):
        ApiKeys.parse(f'{{"id":"a","hash":"{hashed("k")}","tenant":"*"}}', tenants=True)
    with pytest.raises(ConfigError, match=r"gateway\.tenant_claim is not set"):
        ApiKeys.parse(made)


def test_who_may_follow_whom_in_a_session():
    token = Principal("ann", Grants(), expires_ms=1.0, tenant=ACME)
    token.require_follower(Principal("ann", Grants(admin=True), expires_ms=2.0, tenant=ACME))
    for other in (
        Principal("bob", Grants(), expires_ms=2.0, tenant=ACME),
        Principal("ann", Grants(), expires_ms=2.0, tenant=GLOBEX),
        Principal("ann", Grants(), expires_ms=2.0),
    ):
        with pytest.raises(HarborError, match="connect anew"):
            token.require_follower(other)
    Principal("key-1", Grants()).require_follower(Principal("key-2", Grants()))
