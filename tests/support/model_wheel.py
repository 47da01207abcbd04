"""Builds wheels of models, good ones and those that a site must refuse."""

import json
import zipfile

from lepton_common.identity.endorsed import Endorsed, endorse
from lepton_common.models.wheel import read_model_wheel

# The same layout as the catalog's `logistic`.
SOURCE = '''"""Networks of kidneys."""

from torch import nn

from kidney.parts import flat


def tiny(input_shape, outputs):
    return nn.Sequential(flat(), nn.Linear(input_shape[0], outputs))
'''
PARTS = "from torch import nn\n\n\ndef flat():\n    return nn.Flatten()\n"
FILES = {"kidney/__init__.py": "", "kidney/nets.py": SOURCE, "kidney/parts.py": PARTS}
ENTRY = "[lepton.models]\ntiny = kidney.nets:tiny\n"


def texts_of(version="1.0", files=None, *, entry=ENTRY, needs=(), name="kidney", said=None):
    """Returns the files of a wheel, by path."""
    about = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.4", f"Name: {said or name}", f"Version: {version}"]
    lines += ["Summary: Kidneys.", *(f"Requires-Dist: {need}" for need in needs)]
    return {
        **(FILES if files is None else files),
        f"{about}/METADATA": "\n".join(lines) + "\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
        f"{about}/entry_points.txt": entry,
    }


def write_wheel(folder, texts, name="kidney-1.0-py3-none-any.whl", modes=None):
    """Writes files into a wheel, and returns its path."""
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, text in texts.items():
            entry = zipfile.ZipInfo(file)
            entry.external_attr = (modes or {}).get(file, 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, text)
    return path


def kidney(folder, version="1.0", files=None, **changes):
    """Writes a good wheel, unless told otherwise, and returns its path."""
    texts = texts_of(version, files, **changes)
    return write_wheel(folder, texts, f"kidney-{version}-py3-none-any.whl")


def endorsement(path, key, federation="hospitals", by="dora"):
    """Returns the text that a person signs of a wheel."""
    wheel = read_model_wheel(path)
    return endorse(
        key,
        Endorsed(federation=federation, by=by, package=wheel.package, version=wheel.version,
                 sha256=wheel.sha256),
    )  # fmt: skip


def install(path, place):
    """Unpacks a wheel into a folder, with the note that pip leaves of where it came from."""
    wheel = read_model_wheel(path)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(place)
    note = {"url": path.as_uri(), "archive_info": {"hashes": {"sha256": wheel.sha256}}}
    (place / f"kidney-{wheel.version}.dist-info" / "direct_url.json").write_text(json.dumps(note))
    return f"wheel.kidney.tiny.{wheel.sha256}"
