"""Adult: whether a person in the census of 1994 earns more than 50,000 dollars a year.

(B. Becker, R. Kohavi: Adult, UCI Machine Learning Repository, 1996; CC BY 4.0.)
"""

from typing import TYPE_CHECKING

from lepton_common.datasets.made_up import Rule, made_up
from lepton_common.datasets.preparation import check_offered
from lepton_common.datasets.records import Dataset
from lepton_common.datasets.schema import Column, Schema
from lepton_common.datasets.source import MADE_UP, Source
from lepton_common.datasets.tables import prepare_table
from lepton_common.datasets.tabular import read_texts, table_dataset

if TYPE_CHECKING:
    import polars as pl

_SOURCE = Source(
    "adult",
    "https://archive.ics.uci.edu/ml/machine-learning-databases/adult/",
    {
        "adult.data": "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
        "adult.test": "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
    },
)
_NAMES = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation",
    "relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week",
    "native-country", "income",
)  # fmt: skip


def _named(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Categories as adult.names lists them. The census itself cuts ages at 90 and hours at 99; gains and
# losses are cut here at round sums, for it lets gains go up to 99,999 dollars, where it cuts them.
ADULT = Schema(
    "adult",
    (
        Column("age", "integer", 17, 90, unit="years"),
        Column(
            "workclass",
            "category",
            categories=_named(
                "Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov State-gov "
                "Without-pay Never-worked"
            ),
            missing="indicator",
        ),
        Column("education-num", "integer", 1, 16),
        Column(
            "marital-status",
            "category",
            categories=_named(
                "Married-civ-spouse Divorced Never-married Separated Widowed "
                "Married-spouse-absent Married-AF-spouse"
            ),
        ),
        Column(
            "occupation",
            "category",
            categories=_named(
                "Tech-support Craft-repair Other-service Sales Exec-managerial Prof-specialty "
                "Handlers-cleaners Machine-op-inspct Adm-clerical Farming-fishing "
                "Transport-moving Priv-house-serv Protective-serv Armed-Forces"
            ),
            missing="indicator",
        ),
        Column(
            "relationship",
            "category",
            categories=_named("Wife Own-child Husband Not-in-family Other-relative Unmarried"),
        ),
        Column(
            "race",
            "category",
            categories=_named("White Asian-Pac-Islander Amer-Indian-Eskimo Other Black"),
        ),
        Column("sex", "category", categories=("Female", "Male"), encoding="dummies"),
        Column("capital-gain", "integer", 0, 20_000, unit="USD"),
        Column("capital-loss", "integer", 0, 5_000, unit="USD"),
        Column("hours-per-week", "integer", 1, 99, unit="h"),
        Column(
            "native-country",
            "category",
            categories=_named(
                "United-States Cambodia England Puerto-Rico Canada Germany "
                "Outlying-US(Guam-USVI-etc) India Japan Greece South China Cuba Iran Honduras "
                "Philippines Italy Poland Jamaica Vietnam Mexico Portugal Ireland France "
                "Dominican-Republic Laos Ecuador Taiwan Haiti Columbia Hungary Guatemala "
                "Nicaragua Scotland Thailand Yugoslavia El-Salvador Trinadad&Tobago Peru Hong "
                "Holand-Netherlands"
            ),
            missing="indicator",
        ),
        Column("income", "category", categories=("<=50K", ">50K")),
    ),
    label="income",
)
ADULT_RULE = Rule({"education-num": 4.0, "age": 3.0, "hours-per-week": 3.0, "sex=Male": 1.0})
_NOTES = (
    "76 of 100 earn 50,000 dollars or less, so that always saying so is right as often: see the "
    "area under the ROC curve too.",
    "Sex and race are among the features; look at what the model says of each group before use.",
)


def adult(root: str | None, prepare: str) -> Dataset:
    """Census income: the published 32,561 training and 16,281 test records, 12 of 14 columns.

    The census' sampling weight is left out, and the name of the education, which its number says.

    Args:
        root: see `Source.fetch`; or ``made-up``.
        prepare: ``public_ranges``.
    """
    check_offered("adult", prepare, {"public_ranges"})
    if root == MADE_UP:
        return made_up(ADULT, ADULT_RULE)
    paths = _SOURCE.fetch(root)
    train = read_texts(paths["adult.data"], names=_NAMES)
    test = read_texts(paths["adult.test"], names=_NAMES, skipped=1)
    return table_dataset(
        ADULT,
        prepare_table(_as_in_training(train), ADULT),
        prepare_table(_as_in_training(test), ADULT),
        _NOTES,
    )


def _as_in_training(frame: "pl.DataFrame") -> "pl.DataFrame":
    """Returns the table with labels as the training file has them: the test file's end in a dot."""
    import polars as pl

    return frame.with_columns(pl.col("income").str.strip_chars().str.strip_suffix("."))
