"""``lepton site data``: what the operator may know of a site's people, and fresh starts."""

from pathlib import Path
from typing import Annotated

import typer

from lepton_cli.commands.deployment import PASSPHRASE

HELP = """Show how many of the people in a site's data are known, and what has been spent.

  lepton site data FOLDER

For the operator's eyes: whether people are in earlier data too is nobody else's business. All that
was ever charged counts, whoever is in the data. Where the data is of people none of whom was in any
data before, [cyan]--new-people[/] makes a fresh start, a signed entry in the ledger: only what is
charged after it counts. It is refused if somebody is on record. If data that is used later holds
anybody of before, that round fails, and the start is void. A running agent notices by itself.
"""


def command(
    folder: Annotated[Path, typer.Argument(help="The site's folder.")],
    new_people: Annotated[
        bool, typer.Option("--new-people", help="Make a fresh start, for people all of them new.")
    ] = False,
    passphrase_file: PASSPHRASE = None,
) -> None:
    """Reads the site's data; `HELP` is what the user reads.

    Raises:
        PeopleKnown: somebody is on record already; nothing was written.
    """
    from lepton_cli.keys import read_passphrase
    from lepton_client.ledger import Ledger
    from lepton_client.people import people_secret
    from lepton_client.site import KEY_FILE, LEDGER_FILE, SITE_FILE, read_site_file
    from lepton_client.trainer import LocalTrainer
    from lepton_common.identity.keys import SigningKey
    from lepton_common.privacy.ledger_file import CARRIED

    folder = folder.resolve()
    file = read_site_file(folder / SITE_FILE)
    key = SigningKey.load(folder / KEY_FILE, read_passphrase(passphrase_file))
    ledger = Ledger(folder / LEDGER_FILE, key, file.data.id)
    units = LocalTrainer(file.name, file.data, folder, people_secret(key)).people()
    carried = sum(record.kind == CARRIED for record in ledger.records)
    if new_people:
        ledger.start_afresh(file.data.unit, units)
        print(f"A fresh start for {len(units)} units ({file.data.unit}); note it: {ledger.head}")
        _say_carried(carried)
        return
    policy = file.policy
    spent = ledger.epsilon(policy.max_delta)
    print(
        f"{len(units)} units ({file.data.unit}), of which {ledger.known(units)} are on record; "
        f"epsilon {spent:.3f} of at most {policy.max_epsilon:g} is spent at delta "
        f"{policy.max_delta:g}."
    )
    _say_carried(carried)


def _say_carried(carried: int) -> None:
    if carried:
        print(
            f"{carried} charges came over from an earlier key, under which nobody here is known "
            "again: they count for everyone, also after a fresh start."
        )
