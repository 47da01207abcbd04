"""A stock SuperLink, as its owner on the same machine speaks to it."""

import io
import ssl
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid

from lepton_common.flower.bulk_transport import carry_in_bulk, owner_header
from lepton_common.flower.fleet import push_bounded

_PROJECT = """[project]
name = "lepton"
version = "1.0.0"
[tool.flwr.app]
publisher = "lepton"
[tool.flwr.app.components]
serverapp = "lepton_server.app:app"
clientapp = "lepton_client.app:app"
[tool.flwr.app.config]
"""


class SuperLink:
    """The control and the runtime API of a SuperLink on loopback."""

    def __init__(
        self, address: str, authority: str, secret: bytes, shared: Path | None = None
    ) -> None:
        """Speaks to a SuperLink.

        Args:
            address: host:port.
            authority: PEM certificate that has issued the SuperLink's own.
            secret: what it lets tasks be acquired with.
            shared: its folder, through which large objects go.
        """
        from flwr.supercore.control.control_http_client import ControlHttpClient
        from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
        from flwr.supercore.interceptors.http.superexec_auth import SuperExecAuthHttpInterceptor
        from flwr.supercore.runtime import RuntimeHttpClient

        self._address, self._authority, self._shared = address, authority, shared
        self._tls = ssl.create_default_context(cadata=authority)
        version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
        acquire = SuperExecAuthHttpInterceptor(
            master_secret=secret, protected_methods=["/flwr.proto.Runtime/AcquireTask"]
        )
        self._control = ControlHttpClient(
            f"https://{address}", interceptors=[version], verify=self._tls
        )
        name, value = owner_header(secret)
        self._control._client.headers[name] = value
        self._runtime = RuntimeHttpClient(
            f"https://{address}", interceptors=[version, acquire], verify=self._tls
        )

    def close(self) -> None:
        """Lets go of the connections."""
        self._control.close()
        self._runtime.close()

    def register(self, name: str, node_key: str) -> int:
        """Lets a node in by its public key, in OpenSSH's form; returns Flower's number for it."""
        from cryptography.hazmat.primitives.serialization import load_ssh_public_key
        from flwr.proto.control_pb2 import RegisterNodeRequest
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        public = public_key_to_bytes(load_ssh_public_key(node_key.encode()))  # type: ignore[arg-type]
        return int(
            self._control.RegisterNode(RegisterNodeRequest(public_key=public, name=name)).node_id
        )

    def unregister(self, node: int) -> None:
        """Lets a node out, by Flower's number for it."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        self._control.UnregisterNode(UnregisterNodeRequest(node_id=node))

    def start_run(self, config: Mapping[str, str]) -> int:
        """Starts a run of the apps that are installed here; returns Flower's number for it."""
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        content = _fab(config)
        fab = Fab(_digest(content), content, {})
        started = self._control.StartRun(
            StartRunRequest(
                fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config))
            )
        )
        return int(started.run_id)

    def stop_run(self, run_id: int) -> None:
        """Stops a run."""
        from flwr.proto.control_pb2 import StopRunRequest

        self._control.StopRun(StopRunRequest(run_id=run_id))

    @contextmanager
    def task(self) -> Iterator[tuple[Grid, Context] | None]:
        """Gives the grid and the context of the next run that waits; None where none does.

        Leaving the context ends the run: as completed, or as failed after an exception.
        """
        from flwr.common.constant import SubStatus
        from flwr.common.serde import context_from_proto, run_from_proto
        from flwr.proto.runtime_pb2 import (
            AcquireTaskRequest,
            PullTaskInputRequest,
            PushTaskOutputRequest,
        )
        from flwr.supercore.constant import TaskType
        from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
        from flwr.superlink.grid import http_grid

        from lepton_common.flower.sparing_grid import SparingGrid
        from lepton_common.flower.task_identity import speak_for

        http_grid.push_objects = push_bounded  # type: ignore[assignment,attr-defined]
        wanted = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
        acquired = self._runtime.AcquireTask(wanted)
        if not acquired.token:
            yield None
            return
        grid = SparingGrid(
            self._address, root_certificates=self._authority.encode(), token=acquired.token
        )
        status, heart = SubStatus.FAILED, None
        try:
            client = grid._runtime_client
            carry_in_bulk(client, self._tls, self._shared)
            heart = HeartbeatSender(make_task_heartbeat_fn_http(client))
            heart.start()
            given = client.PullTaskInput(PullTaskInputRequest())
            run, context = run_from_proto(given.run), context_from_proto(given.context)
            speak_for(run.run_id, context.node_id)
            context.run_config = dict(run.override_config)
            grid.set_run(run)
            yield grid, context
            status = SubStatus.COMPLETED
        finally:
            # The exception's text stays here.
            details = "" if status == SubStatus.COMPLETED else "The run failed; see its log."
            grid._runtime_client.PushTaskOutput(
                PushTaskOutputRequest(sub_status=status, details=details)
            )
            if heart is not None:
                heart.stop()
            grid.close()


def _digest(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def _fab(config: Mapping[str, str]) -> bytes:
    """Returns an app bundle that names the installed apps and holds no code."""
    text = _PROJECT + "".join(f'{name} = ""\n' for name in sorted(config))
    digest = _digest(text.encode())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as bundle:
        for name, content in {
            "pyproject.toml": text,
            ".info/CONTENT": f"pyproject.toml,{digest},{8 * len(text)}\n",
        }.items():
            # Without a time, so that the bundle of a configuration is always the same.
            bundle.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()
