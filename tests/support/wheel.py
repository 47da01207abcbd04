"""Builds the smallest wheels that pip installs."""

import zipfile


def build_wheel(folder, name, version, *, needs=(), licence="MIT"):
    """Writes a wheel of one empty module, and returns its path."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    lines += [f"License-Expression: {licence}", *(f"Requires-Dist: {need}" for need in needs)]
    files = {
        f"{name}.py": "",
        f"{about}/METADATA": "\n".join(lines) + "\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in (*files, f"{about}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, f"{about}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(file), text)
    return path
