"""Tests of a site's own files as records: read as declared, or refused by rule, never by value."""

import wave

import numpy as np
import pytest
import torch
from PIL import Image

from lepton_client.connectors.file_records import read_files
from lepton_client.connectors.file_sources import (
    ArraySource,
    DicomSource,
    FileSource,
    ImageSource,
    TextSource,
    WavSource,
    paths_of,
)
from lepton_client.people import held_back
from lepton_common.datasets.records import Dataset, Records
from lepton_common.datasets.tables import unit_number
from lepton_common.datasets.tokens import character_tokens, word_tokens
from lepton_common.errors import (
    DataInvalid,
    EmptySite,
    FileDamaged,
    OneClassOnly,
    SettingsError,
    SizeMismatch,
    SourceUnreachable,
)
from lepton_common.strict import record

pytest.importorskip("pydicom")


def _dataset(shape=(1, 8, 8), classes=2, kind="class"):
    nothing = Records(torch.empty(0, *shape), torch.empty(0, dtype=torch.int64))
    return Dataset("things", nothing, nothing, shape, classes, label_kind=kind)


def _image(path, value=0, size=(8, 8), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


def _images(folder, **changes):
    return ImageSource(
        **{"kind": "images", "path": str(folder), "classes": ["ill", "well"], **changes}
    )


def test_a_site_file_names_its_source_by_kind(tmp_path):
    @record
    class File:
        source: FileSource

    from lepton_common.strict import parse

    values = {"kind": "wav", "path": "sounds", "classes": ["a", "b"], "rate_hz": 4000}
    file, faults = parse(File, {"source": values})
    assert faults == []
    assert file.source == WavSource(**values)
    assert paths_of(file.source, tmp_path) == [tmp_path / "sounds"]
    arrays = ArraySource(kind="arrays", features="a.npz#x", labels="b.npy", units=None)
    assert paths_of(arrays, tmp_path) == [tmp_path / "a.npz", tmp_path / "b.npy"]
    assert parse(File, {"source": {**values, "kind": "avi"}})[1]


def test_images_have_their_folders_class_and_are_scaled(tmp_path):
    _image(tmp_path / "ill" / "1.png", 255)
    _image(tmp_path / "well" / "2.BMP", 0)
    (tmp_path / ".DS_Store").write_text("")
    records = read_files(_images("."), _dataset(), tmp_path)
    assert records.labels.tolist() == [0, 1]
    assert records.features.shape == (2, 1, 8, 8)
    assert records.features.flatten(1).unique(dim=1).flatten().tolist() == [1.0, -1.0]
    assert records.units is None


def test_colours_come_first_and_sizes_are_brought_to_the_declared_one_if_asked(tmp_path):
    _image(tmp_path / "ill" / "1.png", (255, 0, 51), (16, 12), "RGB")
    _image(tmp_path / "well" / "2.png", (0, 0, 0), (8, 8), "RGB")
    source, dataset = _images(tmp_path), _dataset((3, 8, 8))
    with pytest.raises(SizeMismatch, match="8 high and 8 wide"):
        read_files(source, dataset, tmp_path)
    records = read_files(_images(tmp_path, fit=True), dataset, tmp_path)
    assert records.features[0, :, 3, 3].tolist() == pytest.approx([1.0, -1.0, -0.6])


def test_a_folder_in_a_classes_folder_is_a_person_the_same_in_every_class(tmp_path):
    for name in ("ill/ann/1.png", "ill/ann/2.png", "well/ann/3.png", "well/bob/4.png"):
        _image(tmp_path / name)
    records = read_files(_images(tmp_path, units="folder"), _dataset(), tmp_path)
    ann, bob = unit_number("ann"), unit_number("bob")
    assert records.units.tolist() == [ann, ann, ann, bob]
    _image(tmp_path / "ill" / "5.png")
    with pytest.raises(DataInvalid, match="privacy unit"):
        read_files(_images(tmp_path, units="folder"), _dataset(), tmp_path)


def test_all_files_at_fault_are_told_at_once_by_rule_and_never_by_what_they_hold(tmp_path):
    _image(tmp_path / "ill" / "1.png", size=(9, 8))
    _image(tmp_path / "ill" / "2.png", size=(8, 9))
    (tmp_path / "ill" / "3.png").write_bytes(b"SECRET" * 20)
    whole = _image(tmp_path / "well" / "4.png", 7).read_bytes()
    (tmp_path / "well" / "4.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SizeMismatch) as refused:
        read_files(_images(tmp_path), _dataset(), tmp_path)
    text = str(refused.value)
    assert "8 high and 8 wide" in text
    assert f"(files: 2, the first of them {tmp_path / 'ill' / '1.png'})" in text
    first = tmp_path / "ill" / "3.png"
    assert (
        f"no whole image: export it again, or remove it (files: 2, the first of them {first})"
        in (text)
    )
    assert "SECRET" not in text


@pytest.mark.parametrize(
    ("mode", "value", "shape", "said"),
    [
        ("RGB", (1, 2, 3), (1, 8, 8), "grey"),
        ("L", 3, (3, 8, 8), "colour"),
        ("I;16", 300, (1, 8, 8), "8 bits"),
    ],
)
def test_images_of_another_kind_are_refused(tmp_path, mode, value, shape, said):
    _image(tmp_path / "ill" / "1.png", value, mode=mode)
    with pytest.raises(SizeMismatch, match=said):
        read_files(_images(tmp_path), _dataset(shape), tmp_path)


def test_folders_that_are_no_class_missing_or_empty(tmp_path):
    with pytest.raises(SourceUnreachable, match="Cannot read the folder"):
        read_files(_images("gone"), _dataset(), tmp_path)
    with pytest.raises(EmptySite, match="no file"):
        read_files(_images("."), _dataset(), tmp_path)
    _image(tmp_path / "other" / "1.png")
    with pytest.raises(DataInvalid, match="no class's folder"):
        read_files(_images("."), _dataset(), tmp_path)
    (tmp_path / "other").rename(tmp_path / "ill")
    (tmp_path / "ill" / "notes.txt").write_text("")
    with pytest.raises(DataInvalid, match=r"Only files \.png"):
        read_files(_images("."), _dataset(), tmp_path)


def test_one_class_only_is_refused_unless_the_site_says_so(tmp_path):
    _image(tmp_path / "ill" / "1.png")
    with pytest.raises(OneClassOnly, match="one class"):
        read_files(_images("."), _dataset(), tmp_path)
    assert len(read_files(_images(".", allow_one_class=True), _dataset(), tmp_path)) == 1


@pytest.mark.parametrize("classes", [["ill"], ["ill", "ill"], ["ill", "well", "dead"]])
def test_as_many_classes_as_the_data_set_has(tmp_path, classes):
    with pytest.raises(SettingsError, match="the 2 classes"):
        read_files(_images(".", classes=classes), _dataset(), tmp_path)


def test_kinds_that_do_not_fit_the_data_set_are_refused(tmp_path):
    named = {"path": ".", "classes": ["a", "b"]}
    for source, shape in [
        (ImageSource(kind="images", **named), (48,)),
        (ImageSource(kind="images", **named), (2, 8, 8)),
        (DicomSource(kind="dicom", **named), (3, 8, 8)),
        (WavSource(kind="wav", rate_hz=8000, **named), (1, 8, 8)),
        (TextSource(kind="text", **named), (1, 8, 8)),
    ]:
        with pytest.raises(SettingsError, match="does not fit 'things'"):
            read_files(source, _dataset(shape), tmp_path)


# Sounds


def _sound(path, values, width=2, channels=1, rate=4000):
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.asarray(values, np.float64).repeat(channels)
    if width == 1:
        data = (numbers * 127 + 128).astype(np.uint8).tobytes()
    else:
        whole = (numbers * (2 ** (8 * width - 1) - 1)).astype("<i8")
        data = whole.view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(data)


def _wav(folder, **changes):
    values = {"kind": "wav", "path": str(folder), "classes": ["a", "b"], "rate_hz": 4000}
    return WavSource(**{**values, **changes})


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_sounds_of_any_width_are_read_as_what_they_are(tmp_path, width, channels):
    wanted = np.linspace(-1, 1, 16)
    _sound(tmp_path / "a" / "1.wav", wanted, width, channels)
    _sound(tmp_path / "b" / "2.wav", -wanted, width, channels)
    records = read_files(_wav(tmp_path), _dataset((16,)), tmp_path)
    assert records.labels.tolist() == [0, 1]
    assert np.allclose(records.features[0], wanted, atol=0.02 if width == 1 else 1e-4)
    assert np.allclose(records.features[1], -wanted, atol=0.02 if width == 1 else 1e-4)


def test_sounds_of_another_rate_or_length_or_none(tmp_path):
    _sound(tmp_path / "a" / "1.wav", np.ones(20))
    _sound(tmp_path / "b" / "2.wav", np.ones(10))
    dataset = _dataset((16,))
    with pytest.raises(SizeMismatch, match="16 samples: cut it"):
        read_files(_wav(tmp_path), dataset, tmp_path)
    with pytest.raises(SizeMismatch, match="8000 samples a second"):
        read_files(_wav(tmp_path, rate_hz=8000), dataset, tmp_path)
    records = read_files(_wav(tmp_path, fit=True), dataset, tmp_path)
    assert records.features.sum(1).tolist() == pytest.approx([16, 10], rel=1e-3)
    whole = (tmp_path / "b" / "2.wav").read_bytes()
    for damaged in (whole[:-3], whole[:20], b"RIFF", b"no sound"):
        (tmp_path / "b" / "2.wav").write_bytes(damaged)
        with pytest.raises(FileDamaged, match="no whole WAV"):
            read_files(_wav(tmp_path, fit=True), dataset, tmp_path)


# Texts


def _text(path, **changes):
    return TextSource(**{"kind": "text", "path": str(path), "classes": ["ham", "spam"], **changes})


def test_lines_of_label_and_text_or_a_file_a_class_say_the_same(tmp_path):
    (tmp_path / "all").write_text("spam\tfree cash\n\nham\thello\tthere\n")
    lines = read_files(_text("all"), _dataset((6,)), tmp_path)
    assert lines.labels.tolist() == [1, 0]
    assert np.array_equal(lines.features[0], word_tokens("free cash", 6))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "ham.txt").write_text("hello\tthere\n")
    (tmp_path / "texts" / "spam.txt").write_text("free cash\n\n")
    files = read_files(_text("texts"), _dataset((6,)), tmp_path)
    assert files.labels.tolist() == [0, 1]
    assert torch.equal(files.features, lines.features.flip(0))


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"eggs\tSECRET\nham\tb\n", DataInvalid, "a tab and a text"),
        (b"ham SECRET\n", DataInvalid, "a tab and a text"),
        (b"\xff\xfe", FileDamaged, "UTF-8"),
        (b"\n \n", EmptySite, "no text"),
        (b"ham\tSECRET\n", OneClassOnly, "one class"),
        (None, SourceUnreachable, "Cannot read"),
    ],
)
def test_texts_of_another_form(tmp_path, content, error, said):
    if content is not None:
        (tmp_path / "all").write_bytes(content)
    with pytest.raises(error, match=said) as refused:
        read_files(_text("all"), _dataset((6,)), tmp_path)
    assert "SECRET" not in str(refused.value)


def test_a_file_that_belongs_to_no_class_is_refused(tmp_path):
    (tmp_path / "eggs.txt").write_text("text")
    with pytest.raises(DataInvalid, match=r"CLASS\.txt"):
        read_files(_text("."), _dataset((6,)), tmp_path)


def test_passages_are_units_and_each_character_is_a_label_once(tmp_path):
    (tmp_path / "all").write_text("to be\n\n\n\n" + "x" * 100 + "\n")
    records = read_files(_text("all", classes=[]), _dataset((80,), 97, "tokens"), tmp_path)
    assert records.units.tolist() == [*map(unit_number, ("to be", "x" * 100, "x" * 100))]
    assert records.labels[0, :5].tolist() == character_tokens("to be").tolist()
    assert int((records.labels >= 0).sum()) == 105
    (tmp_path / "all").write_text("\n\n")
    with pytest.raises(EmptySite):
        read_files(_text("all", classes=[]), _dataset((80,), 97, "tokens"), tmp_path)


def test_a_passage_is_the_same_one_wherever_it_stands(tmp_path):
    """Else one that was trained on were held back once others stand before it, or the reverse."""
    passages, held = [f"passage number {number}" for number in range(40)], []
    for texts in (passages, ["a new one", *passages[::-1]]):
        (tmp_path / "all").write_text("\n\n".join(texts))
        records = read_files(_text("all", classes=[]), _dataset((80,), 97, "tokens"), tmp_path)
        mask = held_back(records, "speech", 0.5)
        held.append({text for text, kept in zip(texts, mask, strict=True) if kept})
    assert 5 < len(held[0]) < 35
    assert held[1] - {"a new one"} == held[0]


# Arrays


def _arrays(**changes):
    values = {"kind": "arrays", "features": "x.npy", "labels": "y.npy", "units": None}
    return ArraySource(**{**values, **changes})


@pytest.fixture
def arrays(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[[0, 255]] * 2] * 3, np.uint8).reshape(3, 2, 2))
    np.save(tmp_path / "y.npy", np.array([0, 1, 1], np.uint8))
    np.savez(tmp_path / "z.npz", x=np.full((3, 1, 2, 2), 0.5), y=np.arange(3) % 2, u=[7, 7, 8])
    return tmp_path


def test_arrays_of_bytes_are_scaled_and_others_taken_as_they_are(arrays):
    dataset = _dataset((1, 2, 2))
    scaled = read_files(_arrays(), dataset, arrays)
    assert scaled.features[0].flatten().tolist() == [-1, 1, -1, 1]
    named = _arrays(features="z.npz#x", labels="z.npz#y", units="z.npz#u")
    taken = read_files(named, dataset, arrays)
    assert taken.features.unique().tolist() == [0.5]
    assert (taken.labels.tolist(), taken.units.tolist()) == ([0, 1, 0], [7, 7, 8])


def test_published_idx_files_are_read(shared_data):
    folder = shared_data / "mnist"
    source = _arrays(features="t10k-images-idx3-ubyte.gz", labels="t10k-labels-idx1-ubyte.gz")
    records = read_files(source, _dataset((1, 28, 28), 10), folder)
    assert records.features.shape == (10_000, 1, 28, 28)
    assert int(records.labels.sum()) == 44_434


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"features": "gone.npy"}, SourceUnreachable, "Cannot read"),
        ({"features": "text.npy"}, FileDamaged, "no .npy file"),
        ({"features": "objects.npy"}, FileDamaged, "no .npy file"),
        ({"features": "cut.npz#x"}, FileDamaged, "no .npy file"),
        ({"features": "z.npz"}, FileDamaged, "no .npy file"),
        ({"features": "z.npz#gone"}, FileDamaged, "no .npy file"),
        ({"features": "x.npy#x"}, FileDamaged, "no .npy file"),
        ({"features": "text.gz"}, DataInvalid, "idx"),
        ({"features": "nan.npy"}, DataInvalid, "not finite"),
        ({"features": "huge.npy"}, DataInvalid, "not finite"),
        ({"features": "wide.npy"}, SizeMismatch, "shape"),
        ({"features": "none.npy"}, EmptySite, "no record"),
        ({"labels": "two.npy"}, SizeMismatch, "as many records"),
        ({"units": "two.npy"}, SizeMismatch, "as many records"),
        ({"labels": "out.npy"}, DataInvalid, r"0\.\.1"),
        ({"labels": "half.npy"}, DataInvalid, "whole numbers"),
        ({"units": "half.npy"}, DataInvalid, "whole numbers"),
        ({"labels": "same.npy"}, OneClassOnly, "one class"),
    ],
)
def test_arrays_of_another_form(arrays, changes, error, said):
    ones = np.ones((3, 1, 2, 2))
    (arrays / "text.npy").write_text("SECRET")
    (arrays / "text.gz").write_text("SECRET")
    np.save(arrays / "objects.npy", np.array([{}] * 3, object))
    (arrays / "cut.npz").write_bytes((arrays / "z.npz").read_bytes()[:-90])
    np.save(arrays / "nan.npy", ones * np.nan)
    np.save(arrays / "huge.npy", ones * 1e300)
    np.save(arrays / "wide.npy", np.ones((3, 1, 2, 3)))
    np.save(arrays / "none.npy", np.ones((0, 1, 2, 2)))
    np.save(arrays / "two.npy", np.arange(2))
    np.save(arrays / "out.npy", np.array([0, 1, 2]))
    np.save(arrays / "half.npy", np.array([0, 1, 0.5]))
    np.save(arrays / "same.npy", np.ones(3, int))
    with pytest.raises(error, match=said) as refused:
        read_files(_arrays(**changes), _dataset((1, 2, 2)), arrays)
    assert "SECRET" not in str(refused.value)
