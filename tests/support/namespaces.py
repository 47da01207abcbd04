"""Machines of the tests: network namespaces, each with an address, on networks of their own."""

import os
import subprocess
from itertools import count

import pytest

_NUMBERS = count(1)


def _ip(*words, namespace=None):
    inside = ["-n", namespace] if namespace else []
    subprocess.run(["ip", *inside, *words], check=True, capture_output=True, text=True)


class Namespaces:
    """Namespaces by short names; all end with `close`."""

    def __init__(self):
        self._prefix, self._made = f"lt{os.getpid()}", []
        try:
            self.add("probe")
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs 'ip netns add', which this machine does not allow")

    def name(self, short):
        """The system's name of a namespace."""
        return f"{self._prefix}-{short}"

    def add(self, short):
        """Makes a namespace with nothing but its loopback."""
        _ip("netns", "add", self.name(short))
        self._made.append(short)
        _ip("link", "set", "lo", "up", namespace=self.name(short))

    def bridge(self, short, device, address):
        """Makes a bridge in a namespace, to which others are plugged."""
        name = self.name(short)
        _ip("link", "add", device, "type", "bridge", namespace=name)
        _ip("addr", "add", f"{address}/24", "dev", device, namespace=name)
        _ip("link", "set", device, "up", namespace=name)

    def plug(self, short, address, into, device):
        """Connects a namespace to a bridge in another, by a veth pair."""
        end = f"{self._prefix}v{next(_NUMBERS)}"
        name, other = self.name(short), self.name(into)
        _ip("link", "add", end, "netns", name, "type", "veth",
            "peer", "name", end, "netns", other)  # fmt: skip
        _ip("link", "set", end, "master", device, "up", namespace=other)
        _ip("addr", "add", f"{address}/24", "dev", end, namespace=name)
        _ip("link", "set", end, "up", namespace=name)

    def inside(self, short, *words):
        """Returns the command that runs words in a namespace."""
        return ["ip", "netns", "exec", self.name(short), *words]

    def out(self, short, *words):
        """Runs a command in a namespace, and returns what it prints."""
        ended = subprocess.run(
            self.inside(short, *words), check=True, capture_output=True, text=True
        )
        return ended.stdout

    def close(self):
        for short in self._made:
            subprocess.run(["ip", "netns", "del", self.name(short)], check=False)
