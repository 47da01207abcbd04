"""Sites whose records come from tables of their own, and the schema that these should fit."""

import numpy as np
import pytest
import yaml

from lepton_common.datasets.schema import Column, Schema
from lepton_common.datasets.schemas import SCHEMAS

TOY = Schema(
    name="toy",
    columns=(
        Column("height", "number", 100, 220, unit="cm"),
        Column("visits", "integer", 0, 20, missing="low"),
        Column("smoker", "flag"),
        Column("weight", "number", 30, 200, unit="kg", missing="middle"),
        Column("risk", "category", categories=("low", "middle", "high")),
    ),
    label="risk",
    unit_id="patient",
    unit="patient",
)
HEAD = ["patient", "height", "visits", "smoker", "weight", "risk"]


@pytest.fixture(autouse=True)
def toy_schema(toy_catalog):
    """Adds the schema of the data set ``toy``."""
    SCHEMAS["toy"] = TOY
    yield TOY
    del SCHEMAS["toy"]


def table(count=24, seed=0):
    """Returns rows of a good table, texts as in a file, two rows a patient."""
    generator = np.random.default_rng(seed)
    return [
        [
            f"P{index // 2}",
            f"{generator.uniform(140, 200):.1f}",
            str(generator.integers(0, 9)),
            str(generator.choice(["yes", "no"])),
            f"{generator.uniform(50, 120):.1f}",
            ("low", "middle", "high")[index % 3],
        ]
        for index in range(count)
    ]


def write_csv(path, rows=None, head=HEAD):
    """Writes a table as comma-separated values."""
    lines = [head, *(table() if rows is None else rows)]
    path.write_text("".join(",".join(line) + "\n" for line in lines))


def point(folder, source=None, unit="patient"):
    """Lets a site's file name a table as its data."""
    path = folder / "site.yaml"
    values = yaml.safe_load(path.read_text())
    source = source or {"kind": "csv", "path": "own.csv"}
    values["data"] |= {"rows": None, "source": source, "unit": unit}
    path.write_text(yaml.safe_dump(values))
