"""Simulated sites that are trained together: whether they can be, their host, and its nodes."""

import logging
import os
from dataclasses import replace

import torch

from lepton_cli.simulated_sites import FIRST_NODE, dataset_of, parts_of
from lepton_client.data import SiteData
from lepton_client.hosted.host import HOST_FILE, HostFile
from lepton_client.site import KEY_FILE
from lepton_client.training.many_room import sites_at_once, why_not_together
from lepton_client.training.resident import ResidentModel, resident_model
from lepton_common.asking import recipe
from lepton_common.device import pick_device
from lepton_common.errors import SettingsError
from lepton_common.identity.keys import SigningKey
from lepton_common.settings import Settings
from lepton_common.strict import to_json
from lepton_common.tasks.catalog import find_task
from lepton_server.run_folder import RunFolder

_LOG = logging.getLogger("lepton.simulation")
# So many bytes of updates and no more are in one answer, where a single one is not larger; and of
# the memory that is free so much may training take.
_ANSWER_BYTES, _SHARE = 1 << 23, 0.5


def resolve_vectorize(settings: Settings) -> Settings:
    """Returns the settings with ``engine.vectorize`` as it can be; says why where it cannot."""
    if settings.engine.vectorize == "none":
        return settings
    why = _why_not(settings)
    if why is None:
        return settings
    _LOG.warning("Sites are trained one at a time (engine.vectorize=none). %s", why)
    return replace(settings, engine=replace(settings.engine, vectorize="none"))


def found_host(settings: Settings, folder: RunFolder) -> None:
    """Writes the folder of the host of all sites, and the server's key."""
    dataset, data = dataset_of(settings), settings.data
    file = HostFile(
        data=SiteData(
            id=dataset.name,
            dataset=dataset.name,
            root=data.root,
            prepare=data.prepare,
            unit=dataset.unit,
            rows=None,
            held_back=data.held_back,
        ),
        parts=parts_of(settings),
        policy=settings.policy,
    )
    folder.server_key.parent.mkdir()
    SigningKey.generate().save(folder.server_key)
    folder.host.mkdir()
    SigningKey.generate().save(folder.host / KEY_FILE)
    (folder.host / HOST_FILE).write_text(to_json(file), encoding="utf-8")


def host_nodes(settings: Settings, folder: RunFolder) -> dict[int, dict[str, str]]:
    """Returns the nodes of the host, one for each answer of a round, by number."""
    workers = settings.engine.workers or os.cpu_count() or 1
    together = settings.engine.together or _together(settings, workers)
    # At least one answer for each worker, and all workers with one answer more or less.
    answers = max(-(-settings.cohort // together), min(workers, settings.cohort))
    answers = min(-(-answers // workers) * workers, settings.cohort)
    config = {"host": str(folder.host)}
    return {FIRST_NODE + number: config for number in range(answers)}


def _why_not(settings: Settings) -> str | None:
    if settings.secure:
        return "Under secure aggregation each site masks its own update."
    if settings.engine.name != "inprocess" or settings.engine.serialise:
        return "It is for engine=inprocess, without serialising."
    mode = settings.privacy.mode if settings.private else None
    try:
        model = _model(settings)
    except SettingsError as error:
        return str(error)
    data = dataset_of(settings).train
    return why_not_together(model, recipe(settings, 1), data, _largest(settings), mode)


def _together(settings: Settings, workers: int) -> int:
    model, data, largest = _model(settings), dataset_of(settings).train, _largest(settings)
    free = _free_bytes(model.device) * _SHARE / workers
    fitting = sites_at_once(
        model, recipe(settings, 1), data, largest, int(free), private=settings.private
    )
    return max(1, min(fitting, _ANSWER_BYTES // (4 * model.layout.size)))


def _largest(settings: Settings) -> int:
    """Returns the number of records of the largest site, of the first thousand."""
    parts = parts_of(settings).split(dataset_of(settings))
    return max(len(parts[index]) for index in range(min(len(parts), 1000)))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _model(settings: Settings) -> ResidentModel:
    dataset = dataset_of(settings)
    outputs = find_task(settings.task).outputs(dataset.classes, dataset.input_shape)
    device = pick_device(settings.train.device)
    return resident_model(settings.model, dataset.input_shape, outputs, device, channels_last=False)
