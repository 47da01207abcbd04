"""Requests to join prove that their sender holds the key in them."""

import json

import pytest

from lepton_common.errors import JoinInvalid
from lepton_common.identity.certificates import make_authority
from lepton_common.identity.joining import make_join, read_join
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Coordinator, Member, Person

KEY, OTHER = SigningKey.generate(), SigningKey.generate()


def entry(cls=Member, name="site-1", key=KEY, **fields):
    authority = fields.pop("authority", make_authority(key, name))
    return cls(name=name, public_key=key.public_hex, authority=authority, **fields)


@pytest.mark.parametrize(
    "made",
    [
        entry(node_key="ecdsa-sha2-nistp256 AAAA"),
        entry(Coordinator, "server", hosts=["localhost"], port=443),
        entry(Person, "carol", roles=["lead", "auditor"]),
    ],
    ids=["site", "coordinator", "person"],
)
def test_an_entry_comes_out_as_it_went_in(made):
    assert read_join(make_join(KEY, made)) == made


def test_a_request_that_another_key_signed_is_refused():
    with pytest.raises(JoinInvalid, match="not signed by the key in it"):
        read_join(make_join(OTHER, entry()))


@pytest.mark.parametrize(("old", "new"), [("site-1", "site-2"), ("public_key", "publik_key")])
def test_an_altered_request_is_refused(old, new):
    text = make_join(KEY, entry())
    assert old in text
    with pytest.raises(JoinInvalid):
        read_join(text.replace(old, new))


def test_a_certificate_of_another_is_refused():
    with pytest.raises(JoinInvalid, match="not that of its key"):
        read_join(make_join(KEY, entry(authority=make_authority(OTHER, "site-1"))))
    with pytest.raises(JoinInvalid, match="damaged"):
        read_join(make_join(KEY, entry(authority="")))


@pytest.mark.parametrize("text", ["", "{}", '{"document": "{}", "signatures": {}}'])
def test_what_is_no_request_is_refused(text):
    with pytest.raises(JoinInvalid, match="not a valid"):
        read_join(text)


def test_an_entry_of_another_kind_is_refused():
    document = json.loads(make_join(KEY, entry()))
    document["document"] = document["document"].replace('"site"', '"person"', 1)
    with pytest.raises(JoinInvalid, match="not a valid Person"):
        read_join(json.dumps(document))
