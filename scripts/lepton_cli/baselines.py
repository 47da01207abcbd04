"""Models to compare with, in simulation only: each site alone, and all data in one place.

They read what no federation may read, so they exist only as labelled baselines.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from lepton_cli.compose import compose_settings
from lepton_client.training.conformance import conform
from lepton_client.training.plain import train_plain
from lepton_client.training.private import heights, train_private
from lepton_client.training.resident import ResidentModel, resident_model
from lepton_client.training.trees import bounded_sums, plain_sums
from lepton_common.arrays import Vector, read_parameters
from lepton_common.asking import privacy_request, recipe
from lepton_common.datasets.records import Dataset, Records, Rows
from lepton_common.device import pick_device
from lepton_common.errors import Interrupted
from lepton_common.flower.task_identity import speak_for
from lepton_common.models.catalog import initial_model
from lepton_common.models.tree_form import FAMILY, form_of
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import public_size_class
from lepton_common.settings import ROBUST, Settings
from lepton_common.tasks.catalog import find_task
from lepton_server.progress import Observer
from lepton_server.rounds.gathered import Means
from lepton_server.strategies.catalog import AVERAGE, make_strategy


def train_baselines(
    settings: Settings,
    dataset: Dataset,
    sites: dict[str, Rows],
    pooled: Rows,
    observer: Observer,
) -> dict[str, Any]:
    """Returns the headline on the test set of models trained without a federation.

    ``local`` maps each site to that of a model trained on its data alone, ``pooled`` is
    that of one trained on all data in one place, both with the run's own recipe and privacy;
    with privacy, ``pooled_without_privacy`` is trained with the task's recipe without it.

    Args:
        settings: the whole configuration.
        dataset: the data set.
        sites: rows of the training set that each site trains on.
        pooled: those of all of them.
        observer: is told of each model, and may ask to stop.

    Raises:
        Interrupted: the observer asked to stop; nothing is kept.
    """
    everyone = dataset.train if len(pooled) == len(dataset.train) else dataset.train.take(pooled)
    settings = _in_one_place(settings)
    speak_for(run_id=0, node_id=1)  # Flower's strategies speak in messages
    jobs: dict[str, Callable[[], float]] = {
        "pooled": partial(_reached, settings, dataset, everyone, "pooled", observer)
    }
    if settings.private:
        plain = _without_privacy(settings)
        job = partial(_reached, plain, dataset, everyone, "pooled", observer)
        jobs["pooled_without_privacy"] = job
    for name, rows in sites.items():
        alone = dataset.train.take(rows)
        jobs[f"local/{name}"] = partial(_reached, settings, dataset, alone, name, observer)
    with ThreadPoolExecutor(
        settings.engine.workers or os.cpu_count() or 1,
        initializer=torch.set_num_threads,
        initargs=(settings.engine.threads_per_site,),
    ) as pool:
        observer.on_baseline(0, len(jobs))
        futures = {name: pool.submit(job) for name, job in jobs.items()}
        try:
            for came, future in enumerate(as_completed(futures.values()), start=1):
                future.result()
                observer.on_baseline(came, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        reached = {name: future.result() for name, future in futures.items()}
    local = {
        name.removeprefix("local/"): value
        for name, value in reached.items()
        if name.startswith("local/")
    }
    return {**{k: v for k, v in reached.items() if "/" not in k}, "local": local}


def _in_one_place(settings: Settings) -> Settings:
    """Returns settings of training on one's own: noise that is not shared, or none for a site."""
    privacy = settings.privacy
    if privacy.mode == "distributed":
        privacy = replace(privacy, mode="record")
    elif privacy.mode == "site":
        privacy = replace(privacy, mode="none", epsilon=None)
    strategy = settings.strategy
    if strategy.name in ROBUST:  # there is one update a round, and no liar
        strategy = replace(strategy, name="fedavg")
    return replace(settings, privacy=privacy, strategy=strategy)


def _without_privacy(settings: Settings) -> Settings:
    root = f"data.root='{settings.data.root}'" if settings.data.root else "data.root=null"
    overrides = [
        f"task={settings.task}",
        "privacy=none",
        f"sites={settings.sites}",
        f"seed={settings.seed}",
        root,
    ]
    if form_of(settings.model) is not None:
        overrides.append(f"model={FAMILY}")
    if settings.data.prepare == "scattering":
        # The task's own model would take the images themselves.
        overrides += ["data.prepare=scattering", f"model={settings.model}"]
    return compose_settings(overrides)


def _reached(
    settings: Settings, dataset: Dataset, records: Records, name: str, observer: Observer
) -> float:
    task = find_task(settings.task)
    outputs = task.outputs(dataset.classes, dataset.input_shape)
    device = pick_device(settings.train.device)
    seeded = initial_model(settings.model, dataset.input_shape, outputs, settings.seed)
    vector: Vector = read_parameters(seeded).numpy()
    asked = privacy_request(settings, len(vector))
    model = resident_model(
        settings.model, dataset.input_shape, outputs, device, channels_last=asked is None
    )
    strategy = make_strategy(settings, model.layout)
    for round_ in range(1, settings.rounds + 1):
        if observer.stop_requested:
            raise Interrupted("Stopped among the baselines, of which nothing is kept.")
        how = recipe(settings, round_)
        if form_of(settings.model) is not None:
            update = _level(settings, dataset, model, records, vector)
        elif asked is None:
            seed = int.from_bytes(f"{how.seed}{name}".encode()) % 2**53
            update, _ = train_plain(model, task, records, vector, how, seed)
        else:
            plan = asked.plan(dataset.unit, public_size_class(records.unit_count))
            used = heights(how, model)
            engine = conform(model, task, dataset.input_shape, dataset.classes, used)
            update = train_private(model, task, records, vector, how, plan, engine)
        vector = strategy.step(round_, vector, Means([update], 1))
    model.load(strategy.snapshot().get(AVERAGE, vector).astype(np.float32))
    test = dataset.test
    features = test.features.to(device, model.dtype)
    metrics = task.evaluate(model.module, features, test.labels.to(device))
    return metrics[task.headline.name]


def _level(
    settings: Settings, dataset: Dataset, model: ResidentModel, records: Records, vector: Vector
) -> Vector:
    """Returns the sums that a level of trees is grown from, as a site gives them."""
    task, asked = find_task(settings.task), privacy_request(settings, len(vector))
    if asked is None:
        return plain_sums(model, task, records, vector)[0]
    plan, secret = asked.plan(dataset.unit, public_size_class(records.unit_count)), SecretRandom()
    sums = bounded_sums(model, task, records, vector, plan, secret)
    return (secret.add_gaussian(sums, plan.own_noise) / plan.sample_rate).astype(np.float32)
