"""Survival with breast cancer in six regions: FLamby's Fed-TCGA-BRCA, and its split.

(J. Liu et al.: An integrated TCGA pan-cancer clinical data resource, Cell 173(2), 2018; J. Ogier du
Terrail et al.: FLamby, NeurIPS Datasets and Benchmarks, 2022.)
"""

from lepton_common.datasets.made_up import Rule, made_up
from lepton_common.datasets.preparation import check_offered
from lepton_common.datasets.records import Dataset
from lepton_common.datasets.schema import Column, Schema
from lepton_common.datasets.source import MADE_UP, Source
from lepton_common.datasets.tables import prepare_table
from lepton_common.datasets.tabular import read_texts, table_dataset

_FOLDER = "fed-tcga-brca"
_FLAMBY = "https://raw.githubusercontent.com/owkin/FLamby/main/flamby/datasets/fed_tcga_brca/"
_PATIENTS = Source(
    _FOLDER,
    _FLAMBY,
    {"brca.csv": "07cb53423f7d579d33cfdbf2cba57b2aee75318b85866c68ce39a75b1f1ba020"},
)
_SPLIT = Source(
    _FOLDER,
    f"{_FLAMBY}dataset_creation_scripts/",
    {"train_test_split.csv": "1249c6543a4060ff0fdaf8510fc37017755836db6c9fc5e6af96057c36510990"},
)
# In FLamby's order, which numbers them 0 to 5 in the column fold2.
REGIONS = ("Northeast", "South", "West", "Midwest", "Europe", "Canada")
_FLAGS = (
    "ethnicity_not hispanic or latino",
    "ethnicity_not reported",
    "race_asian",
    "race_black or african american",
    "race_not reported",
    "race_white",
    "ajcc_pathologic_m_MX",
    "ajcc_pathologic_n_N0 (i-)",
    "ajcc_pathologic_n_N1",
    "ajcc_pathologic_n_N1a",
    "ajcc_pathologic_n_N2",
    "ajcc_pathologic_n_N2a",
    "ajcc_pathologic_stage_Stage IA",
    "ajcc_pathologic_stage_Stage IIA",
    "ajcc_pathologic_stage_Stage IIB",
    "ajcc_pathologic_stage_Stage IIIA",
    "ajcc_pathologic_stage_Stage IIIC",
    "ajcc_pathologic_t_T1c",
    "ajcc_pathologic_t_T2",
    "ajcc_pathologic_t_T3",
    "ajcc_staging_system_edition_5th",
    "ajcc_staging_system_edition_6th",
    "ajcc_staging_system_edition_7th",
    "icd_10_code_C50.9",
    "morphology_8500/3",
    "morphology_8520/3",
    "primary_diagnosis_Infiltrating duct carcinoma, NOS",
    "primary_diagnosis_Lobular carcinoma, NOS",
    "prior_malignancy_yes",
    "synchronous_malignancy_Not Reported",
    "treatment_or_therapy_not reported",
    "treatment_or_therapy_yes",
    "tumor_stage_stage i",
    "tumor_stage_stage ia",
    "tumor_stage_stage iia",
    "tumor_stage_stage iib",
    "tumor_stage_stage iiia",
    "tumor_stage_stage iiic",
)
# Adults, and 90 for all who are older, as the archive hides higher ages; 30 years of follow-up.
TCGA_BRCA = Schema(
    "tcga_brca",
    (
        Column("age_at_index", "integer", 18, 90, unit="years"),
        *(Column(name, "flag", encoding="zero_one") for name in _FLAGS),
        Column("T", "number", 0, 10_957, unit="days"),
        Column("E", "flag"),
        Column("region", "category", categories=REGIONS),
    ),
    label="T",
    label_kind="survival",
    event="E",
    unit_id="pid",
    unit="patient",
    site="region",
)
TCGA_RULE = Rule(
    {"age_at_index": 2.5, "ajcc_pathologic_t_T3": 0.8, "treatment_or_therapy_yes": -0.8}, rate=2.0
)
_NOTES = (
    "Death was observed for 151 of the 1,088 patients; of the others it is known only "
    "that they lived until then. The 222 test patients give a C-index that varies by some "
    "hundredths.",
    "FLamby leaves ages in years; here they are scaled by a public range. Yes and no are 1 and 0.",
)


def tcga_brca(root: str | None, prepare: str) -> Dataset:
    """Patients with breast cancer: FLamby's 866 for training and 222 for tests, in six regions.

    Labels are the days until death, or until which a patient was known to live.

    Args:
        root: see `Source.fetch`; or ``made-up``.
        prepare: ``public_ranges``.
    """
    check_offered("tcga_brca", prepare, {"public_ranges"})
    if root == MADE_UP:
        return made_up(TCGA_BRCA, TCGA_RULE)
    import polars as pl

    patients = read_texts(_PATIENTS.fetch(root)["brca.csv"])
    split = read_texts(_SPLIT.fetch(root)["train_test_split.csv"])
    numbered = {str(number): region for number, region in enumerate(REGIONS)}
    joined = split.join(patients, on="pid", how="inner", maintain_order="left").with_columns(
        pl.col("fold2").str.tail(1).replace_strict(numbered).alias("region")
    )
    train, test = (
        prepare_table(joined.filter(pl.col("fold") == fold), TCGA_BRCA)
        for fold in ("train", "test")
    )
    return table_dataset(TCGA_BRCA, train, test, _NOTES)
