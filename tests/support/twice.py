"""`lepton`, with a network that delivers twice: for as many messages and replies as a file says.

Started in the place of `lepton site start FOLDER`; the files are ``received-twice`` and
``sent-twice`` beside the folder, named by it. Each message or reply takes one byte off its file.
"""

import os
import sys
from pathlib import Path

import httpx

from lepton_cli.main import main
from lepton_common.flower.fleet import FleetNode

_FOLDER = Path(sys.argv[-1]).resolve()
_confirm, _send = FleetNode._confirm, FleetNode.send


def _due(what):
    """Says whether one more is to be delivered twice, and counts it."""
    path = _FOLDER.with_name(f"{_FOLDER.name}.{what}")
    left = path.stat().st_size if path.exists() else 0
    if left:
        os.truncate(path, left - 1)
    return left > 0


def _confirm_or_not(node, run_id, message_id):
    """Loses a confirmation now and then, so that the message is announced again."""
    if _due("received-twice"):
        print("A message will come again.", file=sys.stderr, flush=True)
    else:
        _confirm(node, run_id, message_id)


def _send_twice(node, parcel):
    _send(node, parcel)
    if _due("sent-twice"):
        try:
            _send(node, parcel)
            print("A reply was sent again.", file=sys.stderr, flush=True)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            print(
                f"A reply that was sent again is refused ({status}).", file=sys.stderr, flush=True
            )


FleetNode._confirm, FleetNode.send = _confirm_or_not, _send_twice

if __name__ == "__main__":
    main()
