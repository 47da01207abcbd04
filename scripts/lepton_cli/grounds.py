"""The ground that a simulation runs on: one engine of several, for the same two apps."""

import pkgutil
from collections.abc import Mapping

from lepton_common.settings import EngineSettings
from lepton_server.engines.inprocess import InProcessGrid
from lepton_server.engines.processes import ProcessesGrid
from lepton_server.engines.ray import RayGrid
from lepton_server.engines.serialising import SerialisingGrid
from lepton_server.engines.simulated import NodeConfig, SimulatedGrid

SITE_APP = "lepton_client.app:app"
LEAVE_SITE = "lepton_client.answering:leave_site"


def open_grid(
    engine: EngineSettings,
    nodes: Mapping[int, NodeConfig],
    app: str = SITE_APP,
    forget: str | None = LEAVE_SITE,
) -> SimulatedGrid:
    """Returns the Grid that the settings name, which the caller closes.

    Args:
        engine: which, and how many workers.
        nodes: node id (2 and above) -> the node's configuration.
        app: ``module:attribute`` of the ClientApp: engines do not know the client.
        forget: likewise of what drops a process' cache of a node; None for an app without.

    Raises:
        RayMissing: engine=ray, and Ray is not installed.
        RayUnreachable: engine=ray, and there is no such cluster.
    """
    workers, threads = engine.workers, engine.threads_per_site
    match engine.name:
        case "inprocess":
            kind = SerialisingGrid if engine.serialise else InProcessGrid
            here = pkgutil.resolve_name(app)
            return kind(here, nodes, workers=workers, threads_per_site=threads)
        case "processes":
            return ProcessesGrid(
                app, nodes, workers=workers, threads_per_site=threads, forget=forget
            )
        case "ray":
            return RayGrid(
                app,
                nodes,
                workers=workers,
                threads_per_site=threads,
                forget=forget,
                address=engine.address,
            )
