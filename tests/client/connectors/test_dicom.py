"""Tests of DICOM files: grey levels by the header, patients as units, damage named by rule."""

import numpy as np
import pytest
import torch

from lepton_client.connectors.dicom import read_dicom
from lepton_client.connectors.file_records import read_files
from lepton_client.connectors.file_sources import DicomSource
from lepton_common.datasets.records import Dataset, Records
from lepton_common.datasets.tables import unit_number
from lepton_common.errors import DataInvalid, FileDamaged, SizeMismatch

pydicom = pytest.importorskip("pydicom")

_SHAPE = (1, 4, 4)


def write(path, pixels=None, **changes):
    """Writes a DICOM file of 16-bit numbers; a change to None leaves an element out."""
    pixels = np.arange(16).reshape(4, 4) * 100 if pixels is None else np.asarray(pixels)
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    values = {
        "SOPClassUID": pydicom.uid.ComputedRadiographyImageStorage,
        "SOPInstanceUID": "1.2.3",
        "PatientID": "ann",
        "PatientName": "SECRET^ANN",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelData": pixels.astype("<u2").tobytes(),
        **changes,
    }
    for name, value in values.items():
        if value is not None:
            setattr(header, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


def levels(path, fit=False):
    """Returns the rows of the image."""
    return read_dicom(path, _SHAPE, fit=fit)[0][0]


def test_without_a_window_all_that_the_bits_can_hold_is_the_range(tmp_path):
    wanted = np.arange(16).reshape(4, 4) * 100 / 4095
    assert np.allclose(levels(write(tmp_path / "a")), wanted)
    inverted = write(tmp_path / "b", PhotometricInterpretation="MONOCHROME1")
    assert np.allclose(levels(inverted), 1 - wanted, atol=1e-6)
    rescaled = write(tmp_path / "c", RescaleSlope="-2", RescaleIntercept="5")
    assert np.allclose(levels(rescaled), 1 - wanted, atol=1e-6)


def test_the_first_window_is_applied_after_the_scale(tmp_path):
    # Hounsfield units from -1000; a window of 401 around 0: -200 is black and 200 is white.
    path = write(
        tmp_path / "a",
        RescaleSlope="1",
        RescaleIntercept="-1000",
        WindowCenter=["0.5", "40"],
        WindowWidth=["401", "80"],
    )
    units = np.arange(16).reshape(4, 4) * 100.0 - 1000
    assert np.allclose(levels(path), np.clip((units + 200) / 400, 0, 1), atol=1e-6)
    one = write(tmp_path / "b", WindowCenter="700", WindowWidth="1")
    assert set(levels(one).flatten().tolist()) == {0.0, 1.0}


def test_signed_values_are_read_as_such(tmp_path):
    pixels = np.array([[-2048, 0], [1024, 2047]], np.int16)
    path = write(tmp_path / "a", pixels.view(np.uint16), PixelRepresentation=1)
    found, patient = read_dicom(path, (1, 2, 2), fit=False)
    assert np.allclose(found, [[[0, 2048 / 4095], [3072 / 4095, 1]]])
    assert patient == "ann"


def test_other_sizes_are_refused_or_brought_to_the_declared_one(tmp_path):
    path = write(tmp_path / "a", np.kron(np.eye(4) * 4095, np.ones((2, 2))))
    with pytest.raises(SizeMismatch, match="4 high and 4 wide"):
        levels(path)
    assert np.allclose(levels(path, fit=True), np.eye(4))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"SamplesPerPixel": 3}, SizeMismatch, "one grey image"),
        ({"PhotometricInterpretation": "RGB"}, SizeMismatch, "one grey image"),
        ({"NumberOfFrames": 2}, SizeMismatch, "one grey image"),
        ({"PatientID": None}, DataInvalid, "names? .*patient"),
        ({"PatientID": " "}, DataInvalid, "patient"),
        ({"Rows": None}, FileDamaged, "no whole DICOM"),
        ({"PixelData": None}, FileDamaged, "pixels"),
        ({"PixelData": b"ab"}, FileDamaged, "pixels"),
        ({"BitsAllocated": 12}, FileDamaged, "pixels"),
    ],
)
def test_headers_of_another_form(tmp_path, changes, error, said):
    with pytest.raises(error, match=said) as refused:
        levels(write(tmp_path / "a", **changes))
    assert "SECRET" not in str(refused.value)


def test_no_damage_gets_past_or_is_quoted(tmp_path):
    whole = write(tmp_path / "a").read_bytes()
    generator = np.random.default_rng(0)
    refusals = []
    for _ in range(150):
        damaged = np.frombuffer(whole, np.uint8).copy()
        places = generator.integers(0, len(damaged), 4)
        damaged[places] = generator.integers(0, 256, 4)
        cut = damaged[: generator.integers(1, len(damaged) + 1)]
        (tmp_path / "b").write_bytes(cut.tobytes())
        try:
            found, _ = read_dicom(tmp_path / "b", _SHAPE, fit=False)
            assert found.shape == _SHAPE
            assert np.isfinite(found).all()
        except DataInvalid as error:
            refusals.append(error)
    assert len(refusals) > 75
    # Neither the text nor the trace, which the site's log keeps, has what pydicom said of it.
    assert all("SECRET" not in str(error) and error.__suppress_context__ for error in refusals)


def test_a_folder_of_files_is_records_by_patient(tmp_path):
    nothing = Records(torch.empty(0, *_SHAPE), torch.empty(0, dtype=torch.int64))
    dataset = Dataset("x-rays", nothing, nothing, _SHAPE, 2)
    write(tmp_path / "well" / "1", PatientID="ann")
    write(tmp_path / "well" / "2.dcm", PatientID="bob")
    write(tmp_path / "ill" / "3.dcm", PatientID="ann")
    source = DicomSource(kind="dicom", path=".", classes=["well", "ill"])
    records = read_files(source, dataset, tmp_path)
    assert records.labels.tolist() == [1, 0, 0]
    assert records.units.tolist() == [unit_number(name) for name in ("ann", "ann", "bob")]
    assert float(records.features.min()) == -1
    (tmp_path / "ill" / "4.dcm").write_text("SECRET")
    with pytest.raises(FileDamaged, match=r"no whole DICOM file: .* first of them .*4\.dcm"):
        read_files(source, dataset, tmp_path)
