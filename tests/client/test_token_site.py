"""A site whose key is in a token: it works like any other, and says so when the token is gone."""

from types import SimpleNamespace

import pytest
from soft_token import PIN
from toy_site import PRIVACY, context, train_message

from lepton_client.agent import _answer
from lepton_client.app import app
from lepton_client.site import Site, forget_sites, open_site
from lepton_common.audit import read_records
from lepton_common.errors import KeyUnreadable, TokenGone
from lepton_common.identity.tokens import TokenKey
from lepton_common.privacy.ledger_file import read_ledger


@pytest.fixture
def folder(make_site, token, tmp_path):
    folder = tmp_path / "site-1"
    make_site()
    (folder / "audit.jsonl").unlink()
    TokenKey.make(token.module, token.label, "site-1", PIN).save(folder / "signing.pem")
    return folder


def train(folder, **changes):
    return app(train_message(privacy=PRIVACY, **changes), context(folder))


def test_it_signs_its_log_and_ledger_with_the_token(folder):
    key = open_site(str(folder), PIN).key
    assert not train(folder).has_error()
    forget_sites()
    open_site(str(folder), PIN)
    assert not train(folder, round=2).has_error()
    kinds = [record.kind for record in read_records(folder / "audit.jsonl", key.public_hex)]
    assert kinds.count("release") == 2
    ledger = read_ledger(folder / "ledger.db", key.public_hex)
    assert [record.kind for record in ledger.records] == [
        "open", "data", "charge", "release", "data", "charge", "release",
    ]  # fmt: skip


def test_without_its_pin_it_does_not_open(folder):
    with pytest.raises(KeyUnreadable, match="give its PIN"):
        Site(folder)
    assert train(folder).error.reason == "KeyUnreadable"


def test_without_its_token_it_answers_with_a_name_and_writes_nothing(folder, token):
    site = open_site(str(folder), PIN)
    before = (folder / "audit.jsonl").read_bytes(), site.ledger.head
    token.pull()
    reply = train(folder)
    assert (reply.has_content(), reply.error.reason) == (False, "TokenGone")
    assert ((folder / "audit.jsonl").read_bytes(), site.ledger.head) == before
    token.put_back()
    assert train(folder).error.reason == "TokenGone"  # until it is started again
    forget_sites()
    open_site(str(folder), PIN)
    assert not train(folder).has_error()


def test_its_agent_ends_rather_than_answer_without_a_key(folder, token):
    site, kept = open_site(str(folder), PIN), []
    node = SimpleNamespace(node_id=2, context=lambda *_: context(folder))
    outbox = SimpleNamespace(put=lambda parcel, durable: kept.append(durable))
    _answer(node, train_message(privacy=PRIVACY), site, outbox)
    assert kept == [True]
    token.pull()
    with pytest.raises(TokenGone, match="start again"):
        _answer(node, train_message(privacy=PRIVACY, round=2), site, outbox)
    assert kept == [True]
