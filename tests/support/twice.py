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
_receive, _send = FleetNode.receive, FleetNode.send
_again = []


def _due(what):
    """Says whether one more is to be delivered twice, and counts it."""
    path = _FOLDER.with_name(f"{_FOLDER.name}.{what}")
    left = path.stat().st_size if path.exists() else 0
    if left:
        os.truncate(path, left - 1)
    return left > 0


def _receive_twice(node):
    if _again:
        print("A message comes again.", file=sys.stderr, flush=True)
        return _again.pop()
    message = _receive(node)
    if message is not None and _due("received-twice"):
        _again.append(message)
    return message


def _send_twice(node, reply, seconds):
    _send(node, reply, seconds)
    if _due("sent-twice"):
        try:
            _send(node, reply, seconds)
            print("A reply was sent again.", file=sys.stderr, flush=True)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            print(
                f"A reply that was sent again is refused ({status}).", file=sys.stderr, flush=True
            )


FleetNode.receive, FleetNode.send = _receive_twice, _send_twice

if __name__ == "__main__":
    main()
