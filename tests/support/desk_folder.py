"""A deployed site's folder on toy records, and runs that are proposed to it."""

from dataclasses import replace
from importlib import resources

import pytest
import yaml
from toy_site import PARTNER, add_toys, synthetic, write_site

from lepton_cli.compose import compose_settings
from lepton_client.proposals import FOLDER
from lepton_client.site import Site
from lepton_common.datasets.catalog import DATASETS
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import (
    Coordinator,
    Member,
    Partners,
    Person,
    Roster,
    root_of,
    sign_roster,
)
from lepton_common.policy import SitePolicy
from lepton_common.proposal import make_proposal
from lepton_common.strict import parse
from lepton_common.tasks.catalog import TASKS
from lepton_common.yaml_text import load_yaml

DORA = SigningKey.generate()
NAMES = ["site-1", "site-2", "site-3", "site-4"]
# As it ships.
STRICT, _ = parse(
    SitePolicy,
    load_yaml(resources.files("lepton_conf").joinpath("policy/strict.yaml").read_text("utf-8")),
)
# All records in each step: the accountants are quick then.
PRIVATE = ["privacy=record", "secagg=sa1", "privacy.epsilon=0.9", "privacy.delta=1e-5",
           "privacy.sample_rate=1"]  # fmt: skip


def settings(*words):
    made = compose_settings(
        ["task=breast_cancer", "model=logistic", "sites=4", "rounds=3",
         "federation.name=hospitals", *(words or PRIVATE)]
    )  # fmt: skip
    return replace(made, task="toy")


class Folder:
    """A site's folder, as its operator has it."""

    def __init__(self, path):
        self.path, self.keys = path, [SigningKey.generate() for _ in NAMES[1:]]
        write_site(path, STRICT, 40)
        (path / "signing.pem").chmod(0o600)
        self.change(
            launch={"approval": "manual", "people": None, "studies": None, "quiet_hours": []}
        )
        self.enrol()

    def enrol(self, **changes):
        """Signs the roster anew."""
        keys = [SigningKey.load(self.path / "signing.pem"), *self.keys]
        roster = Roster(
            federation="hospitals",
            version=1,
            partners=Partners(keys=[PARTNER.public_hex], threshold=1),
            coordinator=Coordinator(
                name="coordinator", public_key=SigningKey.generate().public_hex, authority="",
                hosts=["localhost"], port=1,
            ),
            members=[
                Member(name=name, public_key=key.public_hex)
                for name, key in zip(NAMES, keys, strict=True)
            ],
            people=[Person(name="dora", public_key=DORA.public_hex, roles=["lead"], authority="")],
        )  # fmt: skip
        text = sign_roster(replace(roster, **changes), [PARTNER])
        (self.path / "roster.json").write_text(text)
        (self.path / "roster.root").write_text(root_of(text))

    def change(self, **sections):
        """Writes sections of site.yaml; of the policy, what differs."""
        path = self.path / "site.yaml"
        values = yaml.safe_load(path.read_text())
        values["policy"] |= sections.pop("policy", {})
        path.write_text(yaml.safe_dump(values | sections))

    def propose(self, run="run-1", made=None):
        """Has the agent take a proposal in."""
        text = make_proposal(DORA, "dora", None, "hospitals", made or settings())
        (self.path / FOLDER).mkdir(exist_ok=True)
        (self.path / FOLDER / f"{run}.json").write_text(text)
        Site(self.path).audit.append("proposed", {"run": run, "proposal": "0" * 64})
        return text

    def bytes(self):
        """Everything in the folder."""
        return {p: p.read_bytes() for p in sorted(self.path.rglob("*")) if p.is_file()}


@pytest.fixture
def folder(tmp_path):
    """A site's folder on the toy records, joined."""
    add_toys({"train": synthetic()})
    yield Folder(tmp_path / "site-1")
    del DATASETS["toy"], TASKS["toy"]
