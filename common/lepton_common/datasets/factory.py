"""Quality and upkeep: machines that fail (AI4I 2020), and wines as tasters judge them.

(S. Matzka: Explainable artificial intelligence for predictive maintenance applications, AI4I 2020;
P. Cortez, A. Cerdeira, F. Almeida, T. Matos, J. Reis: Modeling wine preferences by data mining from
physicochemical properties, Decision Support Systems 47(4), 2009. Both UCI Machine Learning
Repository, CC BY 4.0.)
"""

from lepton_common.datasets.made_up import Rule, made_up
from lepton_common.datasets.preparation import check_offered
from lepton_common.datasets.records import Dataset
from lepton_common.datasets.schema import Column, Schema
from lepton_common.datasets.source import MADE_UP, Source
from lepton_common.datasets.tables import prepare_table
from lepton_common.datasets.tabular import read_texts, split_once, table_dataset

_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/"
_MACHINES = Source(
    "ai4i-2020",
    f"{_UCI}00601/",
    {"ai4i2020.csv": "dc6630cd9b1f0f853922fad78a1b6436570d3f1ec863f1dd5c4340ac56bc8a8e"},
)
_WINES = Source(
    "wine-quality",
    f"{_UCI}wine-quality/",
    {
        "winequality-red.csv": "4a402cf041b025d4566d954c3b9ba8635a3a8a01e039005d97d6a710278cf05e",
        "winequality-white.csv": "76c3f809815c17c07212622f776311faeb31e87610d52c26d87d6e361b169836",
    },
)

# Ranges by the published description: 300 K and 10 K more, each with some to both sides; a power of
# 2,860 W; a torque of 40 Nm and 10 to both sides; tools are changed at 240 minutes at the latest.
# The columns of how a machine failed are left out: they say that it did.
AI4I = Schema(
    "ai4i",
    (
        Column("Type", "category", categories=("L", "M", "H")),
        Column("Air temperature [K]", "number", 294, 306, unit="K"),
        Column("Process temperature [K]", "number", 304, 316, unit="K"),
        Column("Rotational speed [rpm]", "number", 1_000, 3_000, unit="1/min"),
        Column("Torque [Nm]", "number", 0, 80, unit="Nm"),
        Column("Tool wear [min]", "number", 0, 260, unit="min"),
        Column("Machine failure", "flag"),
    ),
    label="Machine failure",
    unit_id="Product ID",
    unit="product",
    site="Type",
)
AI4I_RULE = Rule({"Torque [Nm]": 5.0, "Tool wear [min]": 4.0, "Rotational speed [rpm]": -2.0})
_AI4I_NOTES = (
    "3.4 of 100 products come with a failure, so that always saying none is right for 96.6: see "
    "the area under the precision-recall curve.",
    "A simulation of milling machines by its authors, not measured; failures follow their rules.",
)

# Ranges by the European law of wine where it knows a bound (volatile and citric acid, all sulphur
# dioxide, sulphates, the sugar of medium dry wines), rounded outwards, else by what is usual for a
# wine; beyond them values count as the bound.
WINE_QUALITY = Schema(
    "wine_quality",
    (
        Column("colour", "category", categories=("red", "white")),
        Column("fixed acidity", "number", 4, 12, unit="g/l"),
        Column("volatile acidity", "number", 0, 1.2, unit="g/l"),
        Column("citric acid", "number", 0, 1, unit="g/l"),
        Column("residual sugar", "number", 0, 18, unit="g/l"),
        Column("chlorides", "number", 0, 0.2, unit="g/l"),
        Column("free sulfur dioxide", "number", 0, 100, unit="mg/l"),
        Column("total sulfur dioxide", "number", 0, 250, unit="mg/l"),
        Column("density", "number", 0.987, 1.003, unit="kg/l"),
        Column("pH", "number", 2.8, 3.8),
        Column("sulphates", "number", 0, 1.2, unit="g/l"),
        Column("alcohol", "number", 8, 14, unit="% vol"),
        Column("quality", "integer", 0, 10),
    ),
    label="quality",
    label_kind="number",
    site="colour",
    duplicates="drop",
)
WINE_RULE = Rule({"alcohol": 0.4, "volatile acidity": -0.3, "sulphates": 0.2}, deviation=0.1)
_WINE_NOTES = (
    "1,177 of the 6,497 published rows repeat another of their colour in every value; one of each "
    "is kept, so that no wine is in training and test. Figures on all rows are not comparable.",
    "Nearly all wines were judged 5, 6 or 7 of 10; compare with always saying the mean.",
)


def ai4i(root: str | None, prepare: str) -> Dataset:
    """Products and whether the machine failed on them: 8,000 to train and 2,000 to test.

    The three classes of products stand for three plants.

    Args:
        root: see `Source.fetch`; or ``made-up``.
        prepare: ``public_ranges``.
    """
    check_offered("ai4i", prepare, {"public_ranges"})
    if root == MADE_UP:
        return made_up(AI4I, AI4I_RULE)
    table = read_texts(_MACHINES.fetch(root)["ai4i2020.csv"])
    train, test = split_once(prepare_table(table, AI4I))
    return table_dataset(AI4I, train, test, _AI4I_NOTES)


def wine_quality(root: str | None, prepare: str) -> Dataset:
    """Red and white wines with their marks: 4,256 to train and 1,064 to test, no two equal.

    Args:
        root: see `Source.fetch`; or ``made-up``.
        prepare: ``public_ranges``.
    """
    check_offered("wine_quality", prepare, {"public_ranges"})
    if root == MADE_UP:
        return made_up(WINE_QUALITY, WINE_RULE)
    import polars as pl

    paths = _WINES.fetch(root)
    parts = [
        read_texts(paths[f"winequality-{colour}.csv"], separator=";").with_columns(
            pl.lit(colour).alias("colour")
        )
        for colour in WINE_QUALITY.column("colour").categories
    ]
    records = prepare_table(pl.concat(parts), WINE_QUALITY)
    train, test = split_once(records)
    return table_dataset(WINE_QUALITY, train, test, _WINE_NOTES)
