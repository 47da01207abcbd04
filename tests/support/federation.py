"""A coordinator and its sites as real processes, from empty folders, as on machines apart."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lepton_cli.main import app
from lepton_common.identity.certificates import issue_leaf
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import read_roster_files

LEPTON = str(Path(sys.executable).with_name("lepton"))
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_TRAINING_RECORDS = {"breast_cancer": 455, "kidney": 480}


def plain_run(sites, task="breast_cancer"):
    """Returns the words of a run whose model is the same in every place."""
    return f"task={task} sites={sites} rounds=10 privacy=none secagg=sa1 seed=11"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Federation:
    """Folders of everyone, and the processes that run in them.

    Attributes:
        command: by folder, what is started in the place of ``lepton``, as ``ip netns exec ...``;
            under "dora" for a person's commands.
        environment: by folder, variables of the process there.
    """

    def __init__(self, path, sites=4, host="localhost", task="breast_cancer"):
        if shutil.which("nginx", path="/usr/local/sbin:/usr/sbin:/usr/bin") is None:
            pytest.skip("needs nginx, which this machine does not have")
        self.path, self.processes, self.host, self.task = path, {}, host, task
        self.sites = tuple(f"site-{number}" for number in range(1, sites + 1))
        self.port, self.metrics_port = free_port(), free_port()
        self.command, self.environment = {}, {}

    def _environment(self, folder):
        kept = {n: v for n, v in os.environ.items() if n.lower() not in _PROXIES}
        return {**kept, "OMP_NUM_THREADS": "1", **self.environment.get(folder, {})}

    def do(self, line, code=0, timeout=120):
        ended = subprocess.run(
            [*self.command.get("dora", [LEPTON]), *line.split()], cwd=self.path,
            capture_output=True, text=True, timeout=timeout, check=False,
            env=self._environment("dora"),
        )  # fmt: skip
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended

    def here(self, line):
        """A command in this process: each of their own would take seconds to start."""
        before = signal.getsignal(signal.SIGINT)
        try:
            with contextlib.chdir(self.path), contextlib.redirect_stdout(io.StringIO()):
                app(line.split(), standalone_mode=False)
        finally:
            signal.signal(signal.SIGINT, before)  # `simulate` takes Ctrl-C for itself

    def make(self):
        # With the names and rows of this simulation, so that its model can be compared.
        self.here(f"simulate {plain_run(len(self.sites), self.task)} runs=simulated")
        (self.simulated,) = (self.path / "simulated").glob("2*")
        for name in ("alice", "bob", "carol"):
            self.here(f"federation key {name}.pem")
        size, adds = _TRAINING_RECORDS[self.task] // len(self.sites), []
        for name in self.sites:
            words = f"--dataset {self.task} --public-size {size}"
            self.here(f"site init {name} --name {name} {words}")
            shutil.copy(self.simulated / "sites" / name / "rows.npy", self.path / name)
            file = self.path / name / "site.yaml"
            text = file.read_text().replace("rows: null", "rows: rows.npy")
            file.write_text(text.replace("approval: manual", "approval: automatic"))
            adds.append(f"--add {name}/join.json")
        self.here(f"server init srv --host {self.host} --port {self.port}")
        self.here("person init dora --name dora --role lead")
        self.here("person init eve --name eve --role auditor")
        adds += [f"--add {name}/join.json" for name in ("srv", "dora", "eve")]
        partners = " ".join(f"--partner {p}.pem.pub" for p in ("alice", "bob", "carol"))
        self.here(
            f"federation init hosp --name hospitals --threshold 2 {partners} {' '.join(adds)}"
        )
        for partner in ("alice", "carol"):
            self.here(f"federation sign hosp --key {partner}.pem --yes")
        self.here("federation publish hosp")
        for kind, folder in (
            *(("site", name) for name in self.sites),
            ("server", "srv"), ("person", "dora"), ("person", "eve"),
        ):  # fmt: skip
            self.here(f"{kind} join {folder} hosp --root {self.root}")

    @property
    def root(self):
        return (self.path / "hosp" / "roster.root").read_text()

    @property
    def roster(self):
        folder = self.path / "hosp"
        return read_roster_files(folder / "roster.json", folder / "roster.root")

    @contextlib.contextmanager
    def decided(self, site, **changes):
        """A site file that says something else for a while; its agent goes on meanwhile."""
        path = self.path / site / "site.yaml"
        before = text = path.read_text()
        for name, value in changes.items():
            text, count = re.subn(rf"(?m)^(  {name}: )[^ #\n]+", rf"\g<1>{value}", text)
            assert count == 1, name
        path.write_text(text)
        yield
        path.write_text(before)

    def start(self, kind, folder):
        more = ["--metrics-port", str(self.metrics_port)] if kind == "server" else []
        with (self.path / f"{folder}.log").open("a") as log:
            self.processes[folder] = subprocess.Popen(
                [*self.command.get(folder, [LEPTON]), kind, "start", folder, *more],
                cwd=self.path,
                stdout=log,
                stderr=log,
                env=self._environment(folder),
            )

    def start_all(self):
        self.start("server", "srv")
        for name in self.sites:
            self.start("site", name)
        self.until(lambda: all("Connected" in self.log(name) for name in self.sites), timeout=300)

    def log(self, folder):
        path = self.path / f"{folder}.log"
        return path.read_text() if path.exists() else ""

    def until(self, holds, timeout=180):
        deadline = time.monotonic() + timeout
        while not holds():
            logs = "\n".join(self.log(name)[-1000:] for name in ("srv", *self.sites))
            assert time.monotonic() < deadline, logs
            time.sleep(0.1)

    def submit(self, words):
        out = self.do(f"submit --as dora --json {words}").stdout
        return json.loads(out)["name"]

    def run(self, name):
        return self.path / "srv" / "runs" / name

    def rounds(self, name):
        path = self.run(name) / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def watch(self, name, code=0, timeout=300):
        return self.do(f"run watch {name} --as dora --json", code, timeout=timeout)

    def children(self, word):
        """The processes that the coordinator started, by a word of their command."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if word in command and str(self.path / "srv") in command:
                found.append(int(path.parent.name))
        return found

    def stop(self):
        for process in self.processes.values():
            process.terminate()
        late = []
        for folder, process in self.processes.items():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                late.append(folder)
                process.kill()
                process.wait()
        assert not late

    def tls(self, name, key=None, at=None):
        """A client's side of TLS: a certificate that a folder's key issues in a name."""
        context = ssl.create_default_context(cadata=self.roster.coordinator.authority)
        if name is not None:
            leaf = issue_leaf(key or SigningKey.load(self.path / name / "signing.pem"), name, at=at)
            file = self.path / "leaf.pem"
            file.write_bytes(leaf.certificate + leaf.private_key)
            context.load_cert_chain(file)
        return context


@contextlib.contextmanager
def running(path, command=None, **more):
    """A federation that is made, started and stopped; ``command``: see `Federation`."""
    made = Federation(path, **more)
    made.command.update(command or {})
    made.make()
    try:
        made.start_all()
        yield made
    finally:
        made.stop()
