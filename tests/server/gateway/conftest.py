"""A federation whose sites attend over a Unix socket."""

import time
from dataclasses import replace

import pytest
from attending import connect_as
from toy_site import PARTNER, make_site, toy_catalog

from lepton_client.attendance import Attendance
from lepton_common.audit import AuditLog
from lepton_common.identity.certificates import make_authority
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Coordinator, Member, Roster, root_of, sign_roster
from lepton_common.identity.signed import Partners
from lepton_server.gateway.health import SignOfLife
from lepton_server.gateway.published import Published
from lepton_server.gateway.runs import Runs
from lepton_server.gateway.serving import serve
from lepton_server.gateway.sites import Inside, Sites
from lepton_server.gateway.witness import Witness

__all__ = ["make_site", "toy_catalog"]


class Federation:
    """A coordinator's services, which may end and begin again, and the sites that attend."""

    def __init__(self, folder, make_site):
        self.folder, self.key = folder / "srv", SigningKey.generate()
        self.folder.mkdir()
        self.sites = {name: make_site(name=name) for name in ("site-1", "site-2")}
        coordinator = Coordinator(
            name="coordinator",
            public_key=self.key.public_hex,
            authority=make_authority(self.key, "coordinator"),
            hosts=["localhost"],
            port=1,
        )
        self.roster = Roster(
            federation="hospitals",
            version=1,
            until="2099-12-31",
            partners=Partners(keys=[PARTNER.public_hex], threshold=1),
            coordinator=coordinator,
            members=[self.member(name) for name in self.sites],
        )
        self.text = sign_roster(self.roster, [PARTNER])
        for place in (self.folder, *(site.folder for site in self.sites.values())):
            (place / "roster.json").write_text(self.text)
            (place / "roster.root").write_text(root_of(self.text))
        self.socket, self.runs = self.folder / "c.sock", Runs(self.folder / "runs")
        self.audit = AuditLog(self.folder / "audit.jsonl", self.key, "coordinator")
        self.attending, self.executor = [], SignOfLife()
        self.begin()

    def member(self, name):
        key = self.sites[name].key
        return Member(name=name, public_key=key.public_hex, authority=make_authority(key, name))

    def next_roster(self, **changes):
        """Returns the text of a roster file with one more version."""
        self.roster = replace(self.roster, version=self.roster.version + 1, **changes)
        self.text = sign_roster(self.roster, [PARTNER], self.text)
        return self.text

    def publish(self, text):
        """As `lepton server join`; then what the running server does."""
        (self.folder / "roster.json").write_text(text)
        if self.published.look():
            self.service.published()

    def begin(self):
        self.published = Published(self.folder, self.key.public_hex)
        self.witness = Witness(self.folder, self.key, self.published, self.audit)
        self.service = Sites(self.runs, self.published, self.witness)
        self.server = serve(
            self.socket, Sites=self.service, Inside=Inside(self.service, self.executor)
        )

    def end(self):
        self.service.close()
        self.server.stop(0).wait()

    def attend(self, name="site-1", on_stop=lambda run: None):
        made = Attendance(self.sites[name], connect_as(name, self.socket), on_stop)
        self.attending.append(made)
        made.begin(lambda: False)
        made.wait(lambda: False)  # the first look
        made.looking()
        return made

    def close(self):
        for one in self.attending:
            one.__exit__()
        self.end()


@pytest.fixture
def federation(tmp_path, make_site, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Federation(tmp_path, make_site)
    yield made
    made.close()


@pytest.fixture
def until():
    """Returns what waits until something holds."""

    def wait(holds):
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return wait
