"""What a trainer's process is given in tests: rows of breast_cancer, a request, and rules."""

import numpy as np
from toy_site import request

from lepton_client.data import SiteData
from lepton_client.rules import TrainerRules
from lepton_common.arrays import Layout, read_parameters
from lepton_common.models.catalog import initial_model

DATA = SiteData(
    id="tumours",
    dataset="breast_cancer",
    root=None,
    prepare="public_ranges",
    unit="row",
    rows="rows.npy",
)
RULES = TrainerRules(isolation="process", launcher=[], threads=1, memory_gib=None, gpus=None)
SECRET = bytes(range(32))
MODEL = initial_model("logistic", (30,), 2, seed=0)
WEIGHTS = read_parameters(MODEL).numpy()
ASKED = request(task="breast_cancer", model="logistic", layout=Layout.of(MODEL).digest)


def fill(folder):
    """Puts a list of 60 rows and something secret into a site's folder, and returns it."""
    np.save(folder / "rows.npy", np.arange(60))
    (folder / "signing.pem").write_text("the site's key")
    return folder
