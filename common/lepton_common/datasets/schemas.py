"""The catalog of schemas: what a site's own table must hold to take the place of a data set."""

from itertools import product

from lepton_common.datasets.census import ADULT
from lepton_common.datasets.credit import CREDIT_DEFAULT, GERMAN_CREDIT
from lepton_common.datasets.embedded import CANCER_RANGES
from lepton_common.datasets.factory import AI4I, WINE_QUALITY
from lepton_common.datasets.schema import Column, Schema
from lepton_common.datasets.tumours import TCGA_BRCA
from lepton_common.names import look_up

_MEASURES = ("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity",
             "concave points", "symmetry", "fractal dimension")  # fmt: skip
_ENDS = [float(end) for end in CANCER_RANGES.split()]

BREAST_CANCER = Schema(
    name="breast_cancer",
    columns=(
        *(
            Column(form.format(measure), "number", low, high)
            for (form, measure), low, high in zip(
                product(("mean {}", "{} error", "worst {}"), _MEASURES),
                _ENDS[::2],
                _ENDS[1::2],
                strict=True,
            )
        ),
        Column("diagnosis", "category", categories=("malignant", "benign")),
    ),
    label="diagnosis",
)

HEART_DISEASE = Schema(
    name="heart_disease",
    columns=(
        Column("age", "number", 20, 80, unit="years", missing="drop"),
        Column("male", "flag", missing="drop"),
        Column("resting blood pressure", "number", 80, 200, unit="mm Hg", missing="drop"),
        Column("cholesterol", "number", 0, 600, unit="mg/dl", missing="drop"),
        Column("fasting sugar above 120 mg/dl", "flag", missing="drop"),
        Column("highest heart rate", "number", 60, 210, unit="1/min", missing="drop"),
        Column("exercise angina", "flag", missing="drop"),
        Column("ST depression", "number", -3, 7, unit="mm", missing="drop"),
        Column(
            "chest pain",
            "category",
            categories=("1", "2", "3", "4"),
            encoding="dummies",
            missing="drop",
        ),
        Column(
            "resting ECG",
            "category",
            categories=("0", "1", "2"),
            encoding="dummies",
            missing="drop",
        ),
        Column("disease", "flag"),
    ),
    label="disease",
    unit_id="patient",
    unit="patient",
)

SCHEMAS: dict[str, Schema] = {
    schema.name: schema
    for schema in (
        BREAST_CANCER,
        HEART_DISEASE,
        ADULT,
        GERMAN_CREDIT,
        CREDIT_DEFAULT,
        AI4I,
        WINE_QUALITY,
        TCGA_BRCA,
    )
}


def find_schema(dataset: str) -> Schema:
    """Returns what a site's own table must hold to be a data set's.

    Raises:
        UnknownName: no such data set has a schema; it says which have one.
    """
    return look_up(SCHEMAS, dataset, "data set with a schema")
