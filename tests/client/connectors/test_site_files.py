"""A site whose file names files of its own trains on them, and tells by name what is wrong."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from toy_site import ask, context, request

from lepton_client.app import app
from lepton_client.connectors.report import REPORT_FILE
from lepton_client.data import SiteRecords
from lepton_client.site import Site, forget_sites
from lepton_common.arrays import Layout, digest_of, pack, read_parameters
from lepton_common.datasets.catalog import DATASETS, load_dataset
from lepton_common.datasets.image_archives import pneumoniamnist
from lepton_common.errors import SettingsError
from lepton_common.messages import train_content
from lepton_common.models.catalog import initial_model
from lepton_common.tasks.catalog import TASKS, Task

_MODEL = initial_model("logistic", (1, 28, 28), 2, seed=0)
_VECTOR = read_parameters(_MODEL).numpy()


@pytest.fixture(autouse=True)
def x_rays(toy_catalog, monkeypatch):
    """Adds the data set and a task of it to the catalogs."""
    monkeypatch.setitem(DATASETS, "x_rays", pneumoniamnist)
    monkeypatch.setitem(TASKS, "x_rays", Task("x_rays", "x_rays", "cross_entropy", "nothing"))
    yield
    load_dataset.cache_clear()


def _point(folder, **changes):
    values = yaml.safe_load((folder / "site.yaml").read_text())
    source = {"kind": "images", "path": "scans", "classes": ["normal", "pneumonia"]}
    values["data"] |= {"dataset": "x_rays", "rows": None, "source": {**source, **changes}}
    (folder / "site.yaml").write_text(yaml.safe_dump(values))


@pytest.fixture
def site_folder(make_site):
    folder = make_site().folder
    generator = np.random.default_rng(0)
    for kind in ("normal", "pneumonia"):
        (folder / "scans" / kind).mkdir(parents=True)
        for index in range(6):
            pixels = generator.integers(0, 256, (28, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "scans" / kind / f"{index}.png")
    _point(folder)
    forget_sites()
    return folder


def _answer(folder):
    asked = request(
        task="x_rays",
        model="logistic",
        layout=Layout.of(_MODEL).digest,
        model_digest=digest_of(pack(_VECTOR).data),
    )
    return app(ask(train_content(asked, _VECTOR)), context(folder))


def test_the_sites_own_files_are_its_records(site_folder):
    site = Site(site_folder)
    records = SiteRecords(site.file.data, site_folder).read()
    assert records.features.shape == (12, 1, 28, 28)
    assert records.labels.tolist() == [0] * 6 + [1] * 6
    assert site.file.data.kept(site_folder.resolve()) == ["scans"]
    reply = _answer(site_folder)
    assert not reply.has_error(), reply.error.reason


def test_what_is_wrong_leaves_by_name_and_stays_in_full(site_folder):
    Image.new("L", (30, 28)).save(site_folder / "scans" / "normal" / "ann-smith.png")
    reply = _answer(site_folder)
    assert reply.error.reason == "SizeMismatch"
    assert "ann-smith" not in str(reply)
    report = json.loads((site_folder / REPORT_FILE).read_text())
    assert report["error"] == "SizeMismatch"
    assert "28 high and 28 wide" in report["said"][0]
    assert "ann-smith.png" in report["said"][0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": "x_ray"}, "x_rays"),
        ({"prepare": "scattering"}, "public_ranges"),
        ({"rows": "rows.npy"}, "null"),
    ],
)
def test_a_site_file_that_contradicts_itself_is_refused(site_folder, changes, said):
    values = yaml.safe_load((site_folder / "site.yaml").read_text())
    values["data"] |= changes
    (site_folder / "site.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(SettingsError, match=said):
        Site(site_folder)
