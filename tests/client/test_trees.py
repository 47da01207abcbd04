"""What a server may ask of a site for its trees, what it costs, with which noise it leaves."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import yaml
from scipy import stats
from toy_federation import Federation
from toy_site import PERMISSIVE, PRIVACY, ask, context, request

from lepton_client import consent
from lepton_client.app import app
from lepton_client.hosted import work
from lepton_client.training.resident import resident_model
from lepton_client.training.trees import bounded_sums
from lepton_common.arrays import Layout, digest_of, pack, read_parameters
from lepton_common.asking import keeps_privacy, privacy_request, shared_noise, weights_of
from lepton_common.datasets.records import Records
from lepton_common.errors import ConsentRefused
from lepton_common.hosting import train_many_content
from lepton_common.messages import SiteFacts, model_record, read_update, train_content
from lepton_common.models.catalog import initial_model
from lepton_common.policy import StatisticsRules
from lepton_common.privacy.ledger_file import read_ledger
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import SHARE_VARIANCE, SharedNoise
from lepton_common.statistics import EvaluationQuery
from lepton_common.tasks.catalog import TASKS, Task
from lepton_common.tasks.sums import figure_cells, named

NAME = "boosted_trees.3x2b8"
OWN = replace(PRIVACY, sample_rate=1.0, noise_multiplier=4.0, steps_per_round=1, max_steps=6)
SHARED = replace(OWN, mode="distributed")


@pytest.fixture(autouse=True)
def pairs(toy_catalog):
    """Makes the toy task one of two classes."""
    train = toy_catalog["train"]
    toy_catalog["train"] = Records(train.features, train.labels % 2)
    TASKS["toy"] = Task("toy", "toy", "binary", "nothing")
    return toy_catalog


def trees(name=NAME, **changes):
    """Returns a valid request for the first level of some trees, and the trees."""
    module = initial_model(name, (4,), 1, seed=0)
    vector = read_parameters(module).numpy()
    valid = request(
        model=name, layout=Layout.of(module).digest, model_digest=digest_of(pack(vector).data)
    )
    return replace(valid, **changes), vector


@pytest.mark.parametrize(
    ("policy", "changes", "reason"),
    [
        (replace(PERMISSIVE, allow_without_dp=False), {}, "differential privacy only"),
        (replace(PERMISSIVE, allow_without_secagg=False), {}, "secure aggregation only"),
        (replace(PERMISSIVE, models=["mlp"]), {}, "does not train the model"),
        (replace(PERMISSIVE, min_noise_multiplier=5.0), {"privacy": OWN}, "noise multiplier"),
        (PERMISSIVE, {"privacy": replace(OWN, steps_per_round=2)}, "one sum over people"),
        (PERMISSIVE, {"privacy": replace(OWN, mode="site")}, "one sum over people"),
        (PERMISSIVE, {"privacy": replace(OWN, clipping_norm=1e4)}, "clipping norm"),
        (PERMISSIVE, {"model": "boosted_trees.3x9b8"}, "No model"),
    ],
)
def test_what_the_policy_does_not_allow_is_refused_before_anything_is_read(
    make_site, pairs, policy, changes, reason
):
    site = make_site(policy)
    asked, vector = trees(**changes)
    with pytest.raises(ConsentRefused, match=reason):
        consent.check(asked, site.file)
    pairs["train"] = None  # reading it would fail
    reply = app(ask(train_content(asked, vector)), context(site.folder))
    assert reply.error.reason == "ConsentRefused"


@pytest.mark.parametrize(
    "changes", [{"coordinates": 0.5}, {"rotate": True}, {"groups": 2}, {"weight_cap": 16},
                {"weights": {"site-1": 16, "site-2": 16, "site-3": 16}}]
)  # fmt: skip
def test_a_level_is_summed_whole_and_people_count_alike(make_site, changes):
    federation = Federation(make_site, 3)
    asked = federation.request(**vars(trees()[0]) | {"masked": None, "cohort": 3})
    form = federation.request().masked
    bad = replace(asked, masked=replace(form, **changes))
    with pytest.raises(ConsentRefused, match="summed whole, and people count alike"):
        consent.check_request(bad, federation.open(1).file, masked=True)
    good = replace(asked, masked=form)
    consent.check_request(good, federation.open(1).file, masked=True)


def test_each_level_is_charged_and_leaves_with_its_event(make_site):
    site = make_site()
    asked, vector = trees(privacy=OWN)
    reply = app(ask(train_content(asked, vector)), context(site.folder))
    update, metrics, receipt = read_update(reply.content, 2 * 2 * 4 * 8)
    assert len(update) == asked.answered(len(vector))
    assert not metrics
    contents = read_ledger(site.folder / "ledger.db", site.key.public_hex)
    assert len([record for record in contents.records if record.kind == "charge"]) == 1
    assert receipt.steps == 1
    (released,) = [r for r in make_site().audit.records if r.kind == "release"]
    protections = {item["name"]: item["provenance"] for item in released.body["items"]}
    assert protections["update"] == {"dp": asked.privacy.plan("row", 16).event().record()}


def test_what_a_model_holds_decides_nothing_about_a_persons_bound(make_site):
    asked, vector = trees(privacy=OWN)
    vector = vector.copy()
    vector[:9] = 1e9  # features that are none; a model of gradients would be refused for it
    asked = replace(asked, model_digest=digest_of(pack(vector).data))
    reply = app(ask(train_content(asked, vector)), context(make_site().folder))
    assert not reply.has_error()


def test_grown_trees_are_evaluated_with_privacy_though_they_count_beyond_100(make_site):
    TASKS["toy"] = Task("toy", "toy", "regression", "nothing")  # as the data has three classes
    asked, grown = trees(privacy=replace(OWN, max_steps=1))
    module = initial_model(NAME, (4,), 1, seed=0)
    with torch.no_grad():
        module.importance += 1e4
    vector = named(read_parameters(module).numpy(), asked.run, private=True)
    assert len(vector) > len(grown)
    cells = figure_cells(20, TASKS["toy"], 3, (4,), Layout.of(module).digest)
    asked = replace(asked, layout=cells.digest, model_digest=digest_of(pack(vector).data),
                    statistics=EvaluationQuery(bins=20, length=cells.size))  # fmt: skip
    rules = StatisticsRules(max_epsilon=9.0, min_cohort=1, max_bins=20)
    site = make_site(replace(PERMISSIVE, statistics=rules))
    file = asdict(site.file)
    file["data"]["held_back"] = 0.5
    (site.folder / "site.yaml").write_text(yaml.safe_dump(file))
    reply = app(ask(train_content(asked, vector)), context(site.folder))
    assert not reply.has_error(), reply.error.reason
    assert len(read_update(reply.content, cells.size)[0]) == cells.size


def test_a_site_of_too_small_a_public_size_counts_as_the_largest_of_that_size(make_site):
    site = make_site()
    asked, vector = trees()
    sums = read_update(app(ask(train_content(asked, vector)), context(site.folder)).content, 128)[0]
    assert np.abs(sums).max() <= 32
    text = (site.folder / "site.yaml").read_text().replace("public_size: 16", "public_size: 1")
    (site.folder / "site.yaml").write_text(text)
    small = read_update(
        app(ask(train_content(replace(asked, round=2), vector)), context(site.folder)).content, 128
    )[0]
    assert np.abs(small).max() == pytest.approx(2)
    assert small / np.abs(small).max() == pytest.approx(sums / np.abs(sums).max(), abs=1e-6)


def _many_cells(site, records):
    name = "boosted_trees.1x4b128"
    asked, vector = trees(name, privacy=OWN)
    model = resident_model(name, (4,), 1, torch.device("cpu"), channels_last=False)
    site.trainer.people()
    return (
        asked,
        vector,
        lambda plan: bounded_sums(model, TASKS["toy"], records, vector, plan, SecretRandom()),
    )


def test_each_cell_leaves_with_the_noise_that_is_charged(make_site, pairs):
    def left(name):
        site = make_site(name=name)
        asked, vector, exact = _many_cells(site, pairs["train"])
        plan = consent.check(asked, site.file)
        return site.trainer.train_privately(asked, vector, plan).astype(float) - exact(plan)

    # Of so many draws 0.02 are six standard errors.
    noise = np.concatenate([left(f"site-{number}") for number in range(6)])
    assert len(noise) == 6 * 2 * 8 * 4 * 128
    assert noise.std() == pytest.approx(4.0 * OWN.clipping_norm, rel=0.02)
    assert stats.kstest(noise / (4.0 * OWN.clipping_norm), "norm").pvalue > 1e-6


def test_each_cell_of_a_shared_sum_has_the_sites_share_of_noise(make_site, pairs):
    def left(name):
        site = make_site(name=name)
        asked, vector, exact = _many_cells(site, pairs["train"])
        plan = SHARED.plan("row", 16, SharedNoise(3, 3, 0, asked.answered(len(vector))))
        noisy = site.trainer.noised_sum(replace(asked, privacy=SHARED), vector, plan)
        return noisy - exact(plan) / plan.grid

    # Of so many draws 0.05 are six standard errors.
    noise = np.concatenate([left(f"site-{number}") for number in range(4)])
    assert noise.var() == pytest.approx(SHARE_VARIANCE, rel=0.05)
    assert stats.kstest(noise / SHARE_VARIANCE**0.5, "norm").pvalue > 1e-6


def test_no_histogram_of_a_site_leaves_under_secure_aggregation(make_site):
    federation = Federation(make_site, 3)
    asked, vector = trees()
    fields = {name: getattr(asked, name) for name in ("model", "layout", "model_digest")}
    asked = federation.request(**fields)
    server = federation.server(asked, clip=32.0, dimension=129)  # the loss rides behind
    server.content = _with_model(server.content, vector)
    total, _ = server.run([1, 2, 3])
    own = federation.open(1).trainer.train(asked, vector).update  # all have the same records
    assert own.any()
    assert total[:128] == pytest.approx(3.0 * own, abs=1e-5)
    released = [r.body for r in federation.open(1).audit.records if r.kind == "release"]
    left = [item for body in released for item in body["items"]]
    masked = [item["provenance"] for item in left if item["name"] == "masked"]
    assert masked == [{"secagg": server.spec.hash.hex()}]
    assert {item["name"] for item in left} == {"secagg", "masked", "receipt"}


def _with_model(content, vector):
    return lambda stage, body=b"", **changes: content(stage, body, **{"model": vector, **changes})


def test_a_host_of_many_sites_grows_none():
    asked, vector = trees()
    message = ask(train_many_content(asked, model_record(vector), [0]))
    with pytest.raises(ConsentRefused, match="grows no trees"):
        work.train(message, None)


def test_the_plan_of_a_run_is_for_as_many_values_as_a_level_has(make_settings):
    changes = {
        "task": "adult", "model": NAME, "trees.depth": 2, "trees.bins": 8, "secagg.mode": "sa1",
        "privacy.mode": "distributed", "federation.weights": "public_size",
    }  # fmt: skip
    settings = make_settings(changes, private=True)
    asked, vector = trees()
    size = len(vector)
    assert shared_noise(settings, size).dimension == asked.answered(size) == 128
    honest = privacy_request(settings, size)
    assert keeps_privacy(honest, settings, size)
    less = replace(honest, noise_multiplier=0.99 * honest.noise_multiplier)
    assert not keeps_privacy(less, settings, size)
    site = SiteFacts(
        name="a", public_key="0" * 64, public_size=512, unit="row", audit_head="0" * 64
    )
    assert weights_of([site], settings) == {"a": 1}
