"""Which records of a site's log and ledger belong to a run, and what else of them is shown."""

from dataclasses import dataclass

from lepton_common.chain import ChainRecord, withhold


@dataclass(frozen=True)
class Shown:
    """A chain as it goes into a pack.

    Attributes:
        data: its lines: the run's records in full, of others hash and signature.
        in_full: how many are shown in full.
        of: how many there are.
    """

    data: bytes
    in_full: int
    of: int


def show(lines: list[bytes], numbers: set[int]) -> Shown:
    """Returns a chain with some of its records, and always the first one, in full."""
    kept = withhold(lines, numbers)
    return Shown(b"".join(line + b"\n" for line in kept), len({0, *numbers}), len(lines))


def of_run(records: list[ChainRecord], run: str) -> set[int]:
    """Returns the numbers of a run's records in a site's audit log.

    Later stages of secure aggregation name their round's specification in place of the run.
    Refusals and draws of groups name neither: they count to the run of the record before them.
    """
    run_of_spec = {
        str(record.body["spec"]): str(record.body["run"])
        for record in records
        if {"spec", "run"} <= set(record.body)
    }
    found, current = set(), ""
    for record in records:
        named = record.body.get("run") or run_of_spec.get(str(record.body.get("spec")))
        current = str(named or current)
        if current == run:
            found.add(record.sequence)
    return found


def charged_to(records: list[ChainRecord], run: str) -> set[int]:
    """Returns the numbers of a run's entries in a ledger: charges, their releases and the data."""
    charges = [r for r in records if r.kind == "charge" and r.body["run"] == run]
    ids = {charge.hash for charge in charges}
    versions = {charge.body["version"] for charge in charges}
    return {charge.sequence for charge in charges} | {
        record.sequence
        for record in records
        if (record.kind == "release" and record.body["charge"] in ids)
        or (record.kind == "data" and record.body["version"] in versions)
    }
