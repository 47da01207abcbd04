"""A small federation of toy sites on disk, and a server that asks them stage by stage."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict
from toy_site import PARTNER, VECTOR, ask, context, request

from lepton_client.app import app
from lepton_client.site import Site, forget_sites, open_site
from lepton_common.identity.roster import Member, Roster, root_of, sign_roster
from lepton_common.identity.signed import Partners
from lepton_common.messages import MaskedSum, TrainRequest, model_record
from lepton_common.secagg.spec import RoundSpec, least_survivors, threshold
from lepton_common.stages import (
    SecAggStage,
    StageRequest,
    read_masked,
    read_stage_reply,
    stage_content,
)
from lepton_common.summing import bind, bind_layout, bind_privacy, run_id_of
from lepton_server.rounds.coordinator import Coordinator

FEDERATION = "toys"


def masked_sum(weights: dict[str, int], **changes: Any) -> MaskedSum:
    """Returns how the updates of a round are summed, plainly unless changed."""
    plain = MaskedSum(
        weights=weights,
        weight_cap=None,
        coordinates=1.0,
        rotate=False,
        rounding="nearest",
        groups=1,
    )
    return replace(plain, **changes)


class Server:
    """One round of SA1, driven by messages through each site's ClientApp.

    Attributes:
        spec: the round.
        request: the training request that it is bound to.
        replies: what each site answered last, by its position.
        shown: the content that each site was sent, by stage and position.
    """

    def __init__(self, folders: list[Path], spec: RoundSpec, asked: TrainRequest) -> None:
        self.folders, self.spec, self.request = folders, spec, asked
        self.replies: dict[int, Message] = {}
        self.shown: dict[tuple[SecAggStage, int], RecordDict] = {}
        self.before_each: Callable[[], None] = lambda: None

    @cached_property
    def coordinator(self) -> Coordinator:
        """The server's state."""
        return Coordinator(self.spec)

    def send(self, index: int, content: RecordDict) -> Message:
        """Sends a site a content, through its ClientApp."""
        self.before_each()
        reply = app(ask(content), context(self.folders[index - 1]))
        self.replies[index] = reply
        return reply

    def ask(self, stage: SecAggStage, index: int, body: bytes = b"", **changes: Any) -> Message:
        """Asks a site for one stage, with some records of the content replaced."""
        self.shown[stage, index] = self.content(stage, body, **changes)
        return self.send(index, self.shown[stage, index])

    def content(self, stage: SecAggStage, body: bytes = b"", **changes: Any) -> RecordDict:
        """Returns what asks for one stage."""
        first = stage is SecAggStage.ADVERTISE
        spec = changes.get("spec", self.spec.to_bytes() if first else self.spec.hash)
        asked = changes.get("request", self.request)
        train = asked if stage in (SecAggStage.ADVERTISE, SecAggStage.MASK) else None
        vector = model_record(changes.get("model", VECTOR)) if stage is SecAggStage.MASK else None
        return stage_content(StageRequest(stage, spec, body), train, vector)

    def advertise(self, sites: list[int]) -> bytes:
        """SA1 R0."""
        for index in sites:
            reply = self.ask(SecAggStage.ADVERTISE, index)
            self.coordinator.take_advert(index, read_stage_reply(reply.content))
        return self.coordinator.close_adverts()

    def share(self, sites: list[int], adverts: bytes) -> dict[int, bytes]:
        """SA1 R1."""
        for index in sites:
            reply = self.ask(SecAggStage.SHARE, index, adverts)
            self.coordinator.take_shares(index, read_stage_reply(reply.content))
        return self.coordinator.close_shares()

    def mask(self, sites: list[int], boxes: dict[int, bytes]) -> bytes:
        """SA1 R2."""
        for index in sites:
            reply = self.ask(SecAggStage.MASK, index, boxes[index])
            header, packed, _ = read_masked(reply.content)
            self.coordinator.take_masked(index, header, packed)
        return self.coordinator.close_masked()

    def sign(self, sites: list[int], headers: bytes) -> bytes:
        """SA1 R3."""
        for index in sites:
            reply = self.ask(SecAggStage.SIGN, index, headers)
            self.coordinator.take_signature(index, read_stage_reply(reply.content))
        return self.coordinator.close_signatures()

    def unmask(self, sites: list[int], signatures: bytes) -> tuple[Any, float]:
        """SA1 R4, and the sum."""
        for index in sites:
            reply = self.ask(SecAggStage.UNMASK, index, signatures)
            self.coordinator.take_unmasking(index, read_stage_reply(reply.content))
        return self.coordinator.unmask()

    def up_to(self, stage: SecAggStage, sites: list[int]) -> Any:
        """Runs the stages before ``stage`` with some sites; returns what it will show them."""
        shown: Any = None
        steps = [self.advertise, self.share, self.mask, self.sign, self.unmask]
        for step, name in zip(steps, list(SecAggStage)[2:], strict=True):
            if name is stage:
                return shown
            shown = step(sites) if shown is None else step(sites, shown)
        return shown

    def run(self, sites: list[int]) -> tuple[Any, float]:
        """Runs all five stages with some sites."""
        return self.unmask(sites, self.up_to(SecAggStage.UNMASK, sites))


class Federation:
    """Toy sites with a roster that the partner signed.

    Attributes:
        sites: as they were made; reopened by `restart`.
        folders: the sites' folders, in order of their names.
    """

    def __init__(self, make_site: Callable[..., Site], count: int = 4, **options: Any) -> None:
        names = [f"site-{index}" for index in range(1, count + 1)]
        self.sites = [make_site(name=name, **options) for name in names]
        self.folders = [site.folder for site in self.sites]
        self.roster = Roster(
            federation=FEDERATION,
            version=1,
            partners=Partners(keys=[PARTNER.public_hex], threshold=1),
            members=[
                Member(name=name, public_key=site.key.public_hex)
                for name, site in zip(names, self.sites, strict=True)
            ],
        )
        for folder in self.folders:
            signed = sign_roster(self.roster, [PARTNER])
            (folder / "roster.json").write_text(signed)
            (folder / "roster.root").write_text(root_of(signed))
        forget_sites()

    def open(self, index: int) -> Site:
        """Returns a site as its ClientApp has it open."""
        return open_site(str(self.folders[index - 1]))

    def request(self, **changes: object) -> TrainRequest:
        """Returns a request to all sites, alike."""
        count = len(self.folders)
        form = masked_sum({folder.name: 1 for folder in self.folders})
        return request(**{"cohort": count, "masked": form, **changes})

    def spec(self, asked: TrainRequest, **changes: Any) -> RoundSpec:
        """Returns the round that a request belongs to, with some fields changed."""
        members = tuple((m.name, bytes.fromhex(m.public_key)) for m in self.roster.members)
        roster = changes.pop("roster", members)
        n, f = len(roster), changes.pop("colluders", 0)
        spec = RoundSpec(
            federation=FEDERATION,
            run_id=run_id_of(asked.run),
            round=asked.round,
            roster=roster,
            colluders=f,
            threshold=threshold(n, f),
            min_survivors=least_survivors(n, f),
            dimension=len(VECTOR) + (asked.privacy is None),
            width=32,
            clip=8.0,
            weight_bits=0,
            layout_hash=bind_layout(asked),
            model_hash=bytes.fromhex(asked.model_digest),
            app_hash=bind(asked),
            dp=bind_privacy(asked.privacy),
        )
        return replace(spec, **changes)

    def server(self, asked: TrainRequest | None = None, **changes: Any) -> Server:
        """Returns a server about to run a round; some fields of its specification changed."""
        asked = asked or self.request()
        return Server(self.folders, self.spec(asked, **changes), asked)
