"""Who pays back: German loans of the 1970s, and credit cards in Taiwan in 2005.

(H. Hofmann: Statlog German Credit Data, 1994; I-C. Yeh, C.-h. Lien: Default of credit card
clients, Expert Systems with Applications 36(2), 2009. Both UCI Machine Learning Repository, CC BY
4.0.)
"""

from lepton_common.datasets.made_up import Rule, made_up
from lepton_common.datasets.preparation import check_offered
from lepton_common.datasets.records import Dataset
from lepton_common.datasets.schema import Column, Schema
from lepton_common.datasets.source import MADE_UP, Source
from lepton_common.datasets.tables import prepare_table
from lepton_common.datasets.tabular import read_texts, split_once, table_dataset

_GERMAN = Source(
    "german-credit",
    "https://archive.ics.uci.edu/ml/machine-learning-databases/statlog/german/",
    {"german.data": "b21f3d81db8071257d5ff1deaeba1fd4303b62712e6fcc9715c7a86202cb5871"},
)
_CARDS = Source(
    "credit-default",
    None,
    {"UCI_Credit_Card.csv": "a0f0ab49d6326671d6cd83be5c88dcf18007025fe9a53ecd699119c871176ca1"},
)


def _coded(name: str, codes: str) -> Column:
    return Column(name, "category", categories=tuple(codes.split()), outside="refuse")


# Codes and units as german.doc lists them; amounts in marks. A47 and A95 are listed, and nobody
# has them. Instalments are in classes of per cent of the income, 4 the smallest share.
GERMAN_CREDIT = Schema(
    "german_credit",
    (
        _coded("checking_account", "A11 A12 A13 A14"),
        Column("duration", "integer", 0, 72, unit="months"),
        _coded("credit_history", "A30 A31 A32 A33 A34"),
        _coded("purpose", "A40 A41 A42 A43 A44 A45 A46 A47 A48 A49 A410"),
        Column("amount", "integer", 0, 20_000, unit="DM"),
        _coded("savings", "A61 A62 A63 A64 A65"),
        _coded("employed_since", "A71 A72 A73 A74 A75"),
        Column("instalment_class", "integer", 1, 4),
        _coded("status_and_sex", "A91 A92 A93 A94 A95"),
        _coded("other_debtors", "A101 A102 A103"),
        Column("residence_class", "integer", 1, 4),
        _coded("property", "A121 A122 A123 A124"),
        Column("age", "integer", 18, 80, unit="years"),
        _coded("other_instalments", "A141 A142 A143"),
        _coded("housing", "A151 A152 A153"),
        Column("credits_here", "integer", 1, 4),
        _coded("job", "A171 A172 A173 A174"),
        Column("dependants", "integer", 1, 2),
        Column("telephone", "category", categories=("A191", "A192"), encoding="dummies"),
        Column("foreign_worker", "category", categories=("A202", "A201"), encoding="dummies"),
        Column("risk", "category", categories=("1", "2")),
    ),
    label="risk",
)
GERMAN_RULE = Rule(
    {
        "duration": 3.0,
        "amount": 3.0,
        "age": -3.0,
        "checking_account=A11": 2.0,
        "checking_account=A14": -2.0,
    }
)
_GERMAN_NOTES = (
    "70 of 100 loans are good, so that always saying so is right as often. Bad ones were drawn "
    "more often than they came, and the authors count a bad loan taken for good as five times the "
    "other mistake.",
    "Age, sex and being a foreign worker are among the features, and some of the published codes "
    "are known to be mixed up (U. Grömping, 2019): for comparison of methods only.",
)

_MONTHS = range(1, 7)
_STATES = tuple(str(state) for state in range(-2, 10))
# Codes as the authors list them; amounts are cut at round sums in new Taiwan dollars.
CREDIT_DEFAULT = Schema(
    "credit_default",
    (
        Column("LIMIT_BAL", "integer", 0, 500_000, unit="TWD"),
        Column("SEX", "category", categories=("1", "2"), encoding="dummies"),
        # 0, 5 and 6 are in the data and not in its description: none of the categories.
        Column("EDUCATION", "category", categories=("1", "2", "3", "4")),
        Column("MARRIAGE", "category", categories=("1", "2", "3")),
        Column("AGE", "integer", 20, 80, unit="years"),
        # Months in arrears; -1 is paid in full, and 0 and -2, by the authors' later word, the
        # least sum paid and nothing spent.
        *(
            Column(f"PAY_{month}", "category", categories=_STATES, outside="refuse")
            for month in (0, *_MONTHS[1:])
        ),
        *(Column(f"BILL_AMT{month}", "number", -50_000, 500_000, unit="TWD") for month in _MONTHS),
        *(Column(f"PAY_AMT{month}", "number", 0, 50_000, unit="TWD") for month in _MONTHS),
        Column("default.payment.next.month", "flag"),
    ),
    label="default.payment.next.month",
    unit_id="ID",
    unit="customer",
)
CREDIT_RULE = Rule({"LIMIT_BAL": -4.0, "BILL_AMT1": 3.0, "PAY_AMT1": -3.0, "AGE": -2.0})
_CARDS_NOTES = (
    "22 of 100 customers default, so that saying of all that they pay is right for 78: see the "
    "area under the ROC curve too.",
    "Sex, education, marriage and age are among the features; look at what the model says of each "
    "group before use.",
)


def german_credit(root: str | None, prepare: str) -> Dataset:
    """Loans of a German bank, good or bad: 800 training and 200 test records, split once for all.

    Args:
        root: see `Source.fetch`; or ``made-up``.
        prepare: ``public_ranges``.
    """
    check_offered("german_credit", prepare, {"public_ranges"})
    if root == MADE_UP:
        return made_up(GERMAN_CREDIT, GERMAN_RULE)
    names = tuple(column.name for column in GERMAN_CREDIT.columns)
    table = read_texts(_GERMAN.fetch(root)["german.data"], separator=" ", names=names)
    train, test = split_once(prepare_table(table, GERMAN_CREDIT))
    return table_dataset(GERMAN_CREDIT, train, test, _GERMAN_NOTES)


def credit_default(root: str | None, prepare: str) -> Dataset:
    """Customers with credit cards, who pay next month or not: 24,000 to train and 6,000 to test.

    The file is the data set's well-known CSV form, which Kaggle gives to those who sign in
    (uciml/default-of-credit-card-clients-dataset).

    Args:
        root: folder that holds ``credit-default/UCI_Credit_Card.csv``; or ``made-up``.
        prepare: ``public_ranges``.
    """
    check_offered("credit_default", prepare, {"public_ranges"})
    if root == MADE_UP:
        return made_up(CREDIT_DEFAULT, CREDIT_RULE)
    table = read_texts(_CARDS.fetch(root)["UCI_Credit_Card.csv"])
    train, test = split_once(prepare_table(table, CREDIT_DEFAULT))
    return table_dataset(CREDIT_DEFAULT, train, test, _CARDS_NOTES)
