"""Faults that a deployment must live through: each begins, lasts a while, and is over."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_SUPPORT = Path(__file__).parent
_DISK_MB, _QUIET_S = 24, 30.0


class Faults:
    """What can be done to a federation whose sites reach the coordinator through relays.

    Attributes:
        kinds: names of the faults, each a method that does it to a site, or to the coordinator.
    """

    kinds = (
        "kill_agent", "kill_trainer", "kill_executor", "kill_superlink", "kill_nginx",
        "kill_coordinator", "slow_site", "slow_coordinator", "partition", "corrupt", "resets",
        "full_disk", "full_disk_of_the_coordinator", "clock_jump", "message_twice", "reply_twice",
    )  # fmt: skip

    def __init__(self, federation, weather, relays, chance):
        self.federation, self.weather, self._relays = federation, weather, relays
        self._chance = chance
        self.clocks = {}

    def mount_disks(self):
        """Puts each folder on a small disk of its own, so that one can be full."""
        for name in ("srv", *self.federation.sites):
            folder = self.federation.path / name
            aside = folder.rename(folder.with_suffix(".aside"))
            folder.mkdir()
            words = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "tests", str(folder)]
            subprocess.run(words, check=True)
            shutil.copytree(aside, folder, dirs_exist_ok=True)
            folder.chmod(aside.stat().st_mode)
            shutil.rmtree(aside)

    def unmount_disks(self):
        for name in ("srv", *self.federation.sites):
            folder = self.federation.path / name
            if folder.is_mount():
                subprocess.run(["umount", "--lazy", str(folder)], check=False)

    def give_clocks(self):
        """Has each site's agent started under a clock that can be moved."""
        library = self.federation.path / "clock.so"
        source = _SUPPORT / "clock_jump.c"
        words = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)]
        subprocess.run(words, check=True)
        for name in self.federation.sites:
            self.clocks[name] = path = self.federation.path / f"{name}.clock"
            path.write_bytes(bytes(8))
            self.federation.environment[name] |= {
                "LD_PRELOAD": str(library), "LEPTON_TEST_CLOCK": str(path),
            }  # fmt: skip

    def deliver_twice(self):
        """Has each site's agent started with a network that can deliver twice."""
        words = [sys.executable, str(_SUPPORT / "twice.py")]
        self.federation.command |= dict.fromkeys(self.federation.sites, words)

    def do(self, kind, site, seconds):
        """Does one fault, which is over when this returns."""
        getattr(self, kind)(site, seconds)

    def keep_up(self):
        """Starts again what has ended, as a service manager does, but for faults that are final."""
        for folder, process in self.federation.processes.items():
            if process.poll() is not None:
                said = self.federation.log(folder)[-2000:]
                assert process.returncode not in (2, 3, 4, 6, 8), said
                self.federation.start("server" if folder == "srv" else "site", folder)

    def kill_agent(self, site, seconds):
        process = self.federation.processes[site]
        process.kill()
        process.wait()
        time.sleep(seconds)
        self.federation.start("site", site)

    def kill_trainer(self, site, seconds):
        agent = self.federation.processes[site].pid
        for process in below(agent, b"lepton_client.trainer_process"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def kill_executor(self, site, seconds):
        self._kill("lepton_server.gateway.executor")

    def kill_superlink(self, site, seconds):
        self._kill("superlink_process")

    def kill_nginx(self, site, seconds):
        self._kill("nginx")

    def kill_coordinator(self, site, seconds):
        process = self.federation.processes["srv"]
        process.kill()
        process.wait()
        time.sleep(seconds)
        self.federation.start("server", "srv")

    def slow_site(self, site, seconds):
        self._stopped(self.federation.processes[site].pid, seconds)

    def slow_coordinator(self, site, seconds):
        for process in self._there("superlink_process"):
            self._stopped(process, seconds)

    def partition(self, site, seconds):
        self.weather[site].cut = True
        time.sleep(2 * seconds)
        self.weather[site].cut = False

    def corrupt(self, site, seconds):
        before = self._relays[site].corrupted
        self.weather[site].corrupt = 3
        self._until_hit(lambda: self._relays[site].corrupted > before, seconds)
        self.weather[site].corrupt = 0

    def resets(self, site, seconds):
        before = self._relays[site].broken
        self.weather[site].reset = 0.3
        self._until_hit(lambda: self._relays[site].broken > before, seconds)
        self.weather[site].reset = 0.0

    def full_disk(self, site, seconds):
        ballast = self.federation.path / site / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        time.sleep(seconds)
        ballast.unlink()

    def full_disk_of_the_coordinator(self, site, seconds):
        self.full_disk("srv", seconds)

    def clock_jump(self, site, seconds):
        shift = int(self._chance.choice([-3 * 86400, -400, 400, 3 * 86400]))
        self._shift_clock(site, shift)
        time.sleep(seconds)
        self._shift_clock(site, 0)

    def message_twice(self, site, seconds):
        (self.federation.path / f"{site}.received-twice").write_bytes(b"..")

    def reply_twice(self, site, seconds):
        (self.federation.path / f"{site}.sent-twice").write_bytes(b"..")

    def _shift_clock(self, site, shift):
        # In place: the agent has the file mapped, and would die of one that is cut short.
        with self.clocks[site].open("r+b") as file:
            file.write(shift.to_bytes(8, "little", signed=True))

    def _until_hit(self, hit, seconds):
        """Waits so long, and on until something came by that was hit: lines may be quiet."""
        most = time.monotonic() + _QUIET_S
        time.sleep(seconds)
        while not hit() and time.monotonic() < most:
            time.sleep(0.1)

    def _there(self, word):
        """Returns the coordinator's processes of a word, which the fault before may have ended."""
        found = []

        def there():
            self.keep_up()  # a disk that was full may have ended the coordinator just now
            found.extend(self.federation.children(word))
            return found

        self.federation.until(there)
        return found

    def _kill(self, word):
        for process in self._there(word):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _stopped(self, process, seconds):
        os.kill(process, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(process, signal.SIGCONT)


def below(ancestor, word=None):
    """Returns the processes below one; with a word, those whose command has it."""
    parents, named = {}, set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            number = int(path.name)
            parents[number] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if word is None or word in (path / "cmdline").read_bytes().split(b"\0"):
                named.add(number)
    found = []
    for number in named - {ancestor}:
        parent = number
        while parent in parents and parent != ancestor:
            parent = parents[parent]
        if parent == ancestor:
            found.append(number)
    return found
