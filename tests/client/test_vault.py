"""The vault: sealed, private to the owner, tamper-evident, and empty once a round is over."""

import os
import stat

import pytest
from toy_federation import Federation

from lepton_client.participant import Participant, Stage
from lepton_client.vault import Vault
from lepton_common.errors import StateError
from lepton_common.identity.keys import SigningKey
from lepton_common.stages import SecAggStage

ALL = [1, 2, 3]


@pytest.fixture
def federation(make_site):
    return Federation(make_site, 3)


@pytest.fixture
def part(federation):
    spec = federation.spec(federation.request())
    begun = Participant.begin(spec, "site-1", federation.sites[0].key)
    begun.advertise()
    return begun


@pytest.fixture
def vault(federation, tmp_path):
    return Vault(tmp_path / "vault", federation.sites[0].key)


def files(vault):
    return sorted(vault._folder.iterdir())


def test_what_was_saved_is_loaded_also_by_another_process(vault, part, federation):
    vault.save(part)
    again = Vault(vault._folder, federation.sites[0].key).load(part.spec.hash)
    assert again.to_bytes() == part.to_bytes()
    assert (again.stage, again.index) == (Stage.ADVERTISED, 1)


def test_files_are_their_owners_alone_whatever_the_umask(vault, part):
    before = os.umask(0)
    try:
        vault.save(part)
    finally:
        os.umask(before)
    (path,) = files(vault)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(vault._folder.stat().st_mode) == 0o700


def test_nothing_of_the_state_can_be_read_in_the_file(vault, part):
    vault.save(part)
    data = files(vault)[0].read_bytes()
    assert len(part._secrets) == 3
    for secret in (*part._secrets, part._advert, b"site-1", part.spec.to_bytes()[:40]):
        assert secret not in data
        assert secret.hex().encode() not in data
    vault.save(part)
    assert files(vault)[0].read_bytes()[:12] != data[:12]  # a nonce is used once


def test_no_changed_byte_opens(vault, part):
    vault.save(part)
    (path,) = files(vault)
    data = path.read_bytes()
    for place in [*range(0, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(StateError, match="does not open"):
            vault.load(part.spec.hash)
    for cut in (b"", data[:5], data[:12], data[:-1], data + b"\0"):
        path.write_bytes(cut)
        with pytest.raises(StateError, match="does not open"):
            vault.load(part.spec.hash)


def test_a_file_under_another_rounds_name_or_another_key_does_not_open(vault, part, tmp_path):
    vault.save(part)
    (path,) = files(vault)
    other = bytes(32)
    path.with_name(f"{part.spec.run_id.hex()}.{other.hex()}").write_bytes(path.read_bytes())
    with pytest.raises(StateError, match="does not open"):
        vault.load(other)
    with pytest.raises(StateError, match="does not open"):
        Vault(vault._folder, SigningKey.generate()).load(part.spec.hash)


@pytest.mark.parametrize("name", [b"", bytes(32), b"*", b"../x", bytes(5000)])
def test_a_round_that_the_site_is_not_in_is_a_state_error(vault, part, name):
    vault.save(part)
    with pytest.raises(StateError, match="not in the round"):
        vault.load(name)


def test_erasing_a_run_leaves_nothing_of_it_and_all_of_others(vault, part, federation):
    other = Participant.begin(
        federation.spec(part.spec and federation.request(), run_id=b"2" * 16),
        "site-1",
        federation.sites[0].key,
    )
    vault.save(part)
    vault.save(other)
    vault.erase_run(part.spec.run_id)
    assert [path.name[:32] for path in files(vault)] == [other.spec.run_id.hex()]


def test_erasing_overwrites_before_it_unlinks(vault, part, tmp_path):
    vault.save(part)
    (path,) = files(vault)
    os.link(path, tmp_path / "kept")
    size = path.stat().st_size
    vault.erase_run(part.spec.run_id)
    assert (tmp_path / "kept").read_bytes() == bytes(size)


def test_what_a_crash_in_mid_write_left_is_erased_too(vault, part, monkeypatch):
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(SystemError))
    monkeypatch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
    with pytest.raises(SystemError):
        vault.save(part)
    monkeypatch.undo()
    assert len(files(vault)) == 1
    vault.erase_run(part.spec.run_id)
    assert files(vault) == []


def test_a_round_that_was_unmasked_leaves_no_secret_and_the_next_one_no_file(federation):
    server = federation.server()
    signatures = server.up_to(SecAggStage.UNMASK, ALL)
    before = federation.open(1).vault.load(server.spec.hash)
    assert len(before._shares) == 3
    server.unmask(ALL, signatures)
    after = federation.open(1).vault.load(server.spec.hash)
    assert (after._secrets, after._shares) == ((), {})
    released = after._last[1]
    for owner, shares in before._shares.items():
        assert shares[:33] in released, owner  # of b, which unmasks the sum
        assert shares[33:] not in after.to_bytes(), owner  # of s, which would unmask a site
    spoken = federation.request(round=2, model_digest="a" * 64)
    federation.server(spoken).advertise(ALL)
    for folder in federation.folders:
        (path,) = (folder / "rounds").iterdir()
        assert server.spec.hash.hex() not in path.name


def test_a_round_that_failed_leaves_no_file(federation):
    server = federation.server()
    server.up_to(SecAggStage.SHARE, ALL)
    assert server.ask(SecAggStage.SHARE, 1, b"nonsense").error.reason == "MalformedMessage"
    assert list((federation.folders[0] / "rounds").iterdir()) == []
    assert server.ask(SecAggStage.SHARE, 1, b"nonsense").error.reason == "StateError"
