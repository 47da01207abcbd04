"""Flower's own simulation runtime without Ray: what third-party apps are compared with.

Flower's in-memory SuperLink state, its grid and its message pump are used as they are; only the
pool of Ray actors is replaced, by one that copies what it is given and calls the app.
"""

import contextlib
import pickle
import sys
import threading
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.clientapp.client_app import ClientAppException, LoadClientAppError
from flwr.common.config import get_fused_config_from_dir, get_project_config
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.fleet.vce.backend.backend import Backend
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_ref import load_app
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

_RUN, _TASK = 1, 1


class _OneWorker(Backend):
    """In the place of Ray: pickles in and out, as Ray does, and one call at a time."""

    def __init__(self, app):
        self._app = app

    def build(self, app_fn):
        pass

    @property
    def num_workers(self):
        return 1

    def is_worker_idle(self):
        return True

    def terminate(self):
        pass

    def process_message(self, message, context):
        message, context = pickle.loads(pickle.dumps((message, context)))
        try:
            reply = self._app(message=message, context=context)
        except Exception as error:
            raise ClientAppException(str(error)) from error
        return pickle.loads(pickle.dumps((reply, context)))


def run_as_flower(folder: Path, nodes: int) -> None:
    """Runs the app in ``folder`` to its end, in that folder."""
    path = list(sys.path)
    components = get_project_config(folder)["tool"]["flwr"]["app"]["components"]
    TaskIdentity.task_id, TaskIdentity.run_id = _TASK, _RUN
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    factory = LinkStateFactory(
        FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()
    )
    run = Run.create_empty(_RUN)
    run.primary_task_id, run.federation_id = _TASK, NOOP_FEDERATION_ID
    state = factory.state()
    state.run_ids[_RUN] = RunRecord(run=run)
    state.task_store[_TASK] = Task(task_id=_TASK, run_id=_RUN)
    grid = InMemoryGrid(factory, pull_interval=0.01)
    grid.set_run(run)
    mapping = vce_api._register_nodes(nodes, factory)
    stores = vce_api._register_node_info_stores(mapping, run, str(folder))
    with contextlib.chdir(folder):
        client_app = load_app(components["clientapp"], LoadClientAppError, folder)
        server_app = load_app(components["serverapp"], LoadClientAppError, folder)
        backend, stop = _OneWorker(client_app), threading.Event()
        pump = threading.Thread(
            target=vce_api.run_api,
            args=(
                lambda: client_app,
                lambda: backend,
                mapping,
                factory,
                stores,
                stop,
                VceMetrics(),
            ),
        )
        pump.start()
        try:
            config = get_fused_config_from_dir(folder, {})
            server_app(grid=grid, context=Context(_RUN, 0, {}, RecordDict(), config))
        finally:
            stop.set()
            pump.join()
            sys.path[:] = path
