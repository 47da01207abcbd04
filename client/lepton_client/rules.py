"""What a site's operator decides about deployment: how the trainer is confined, and who may launch.

A simulated site has none of it: nobody but the researcher is there.
"""

import re
from datetime import time
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from lepton_common.strict import Count, Name, Positive, record

_CLOCK = "([01][0-9]|2[0-3]):[0-5][0-9]"


def _hours(text: str) -> str:
    if not re.fullmatch(f"{_CLOCK}-{_CLOCK}", text):
        raise ValueError("Write hours as 22:00-06:00, with two digits each")
    return text


Hours = Annotated[str, AfterValidator(_hours)]


@record
class TrainerRules:
    """How the process that holds the data is confined.

    Attributes:
        isolation: ``namespace``: without network, other processes, or sight of the site's keys
            and logs; ``process``: a process of its own, no more.
        launcher: words before its command, such as those of ``srun``, which then has to confine
            it; it is spoken to by its standard input and output.
        threads: of its tensor operations; None: as many as there are cores.
        memory_gib: most memory that it may hold; None: no limit.
        gpus: those it may see, as CUDA_VISIBLE_DEVICES names them, "" for none; None: all.
    """

    isolation: Literal["namespace", "process"]
    launcher: list[str]
    threads: Count | None
    memory_gib: Positive | None
    gpus: Annotated[str, Field(pattern=r"^[0-9A-Za-z,/-]*$")] | None

    def __post_init__(self) -> None:
        """Refuses to cut a launcher off from what it launches by.

        Raises:
            ValueError: there is a launcher, and ``namespace``.
        """
        if self.launcher and self.isolation == "namespace":
            raise ValueError("With a launcher, isolation is 'process': the launcher confines.")


@record
class LaunchRules:
    """Whose runs the site takes part in, and when.

    Attributes:
        approval: ``manual``: each run waits for the operator; ``automatic``: what the policy
            allows takes place.
        people: leads of the roster who may propose runs; None: all of them.
        studies: studies whose runs are taken; None: all that name this site, and runs of none.
        quiet_hours: parts of the day, by the machine's clock, in which nothing is trained.
    """

    approval: Literal["manual", "automatic"]
    people: list[Name] | None
    studies: list[Name] | None
    quiet_hours: list[Hours]

    def quiet(self, now: time) -> str | None:
        """Returns the quiet hours that a time of the day is in; None outside them."""
        for hours in self.quiet_hours:
            start, end = (time.fromisoformat(clock) for clock in hours.split("-"))
            if start <= now < end or (end <= start and not end <= now < start):
                return hours
        return None
