"""Frozen records, strictly parsed: no unknown field, wrong type or non-finite number passes."""

import json
from typing import Annotated, Any, TypeVar, cast, dataclass_transform, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as _dataclass

from lepton_common.names import did_you_mean

T = TypeVar("T")

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=1, le=2**40)]
Steps = Annotated[int, Field(ge=1, le=10**7)]
Rate = Annotated[float, Field(ge=1e-9, le=1)]
Noise = Annotated[float, Field(ge=0.1, le=1e9)]
Norm = Annotated[float, Field(ge=1e-6, le=1e6)]
Natural = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,1023}$")]
Day = Annotated[str, Field(pattern=r"^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass with strict types, finite numbers and no unknown fields."""
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return cast("type[T]", _dataclass(frozen=True, kw_only=True, config=config)(cls))


def parse(cls: type[T], value: Any) -> tuple[T | None, list[str]]:  # noqa: ANN401
    """Returns the record, or every fault as one sentence with the nearest valid name.

    Args:
        cls: a class made by `record`.
        value: plain values, as from YAML.
    """
    try:
        text = json.dumps(value)
    except (TypeError, ValueError) as error:
        return None, [f"Only texts, numbers, lists and sections are settings: {error}."]
    try:
        return TypeAdapter(cls).validate_json(text), []
    except ValidationError as error:
        return None, [_sentence(cls, dict(fault)) for fault in error.errors()]


def parse_json(cls: type[T], text: str) -> T:
    """Returns the record in a JSON text.

    Raises:
        ValueError: the text is not exactly such a record; says where, not what came.
    """
    try:
        return TypeAdapter(cls).validate_json(text)
    except ValidationError as error:
        places = {".".join(map(str, fault["loc"])) or "text" for fault in error.errors()}
        raise ValueError(f"not a valid {cls.__name__}: {', '.join(sorted(places))}") from None


def to_json(value: object) -> str:
    """Returns a record as JSON text."""
    return TypeAdapter(type(value)).dump_json(value).decode()


def field_names(cls: type, prefix: str = "") -> list[str]:
    """Returns the dotted names of all settings in a record class, nested ones included."""
    names = []
    for name, kind in cls.__annotations__.items():
        names.append(prefix + name)
        for part in (kind, *get_args(kind)):  # a section that may be left out is one too
            if hasattr(part, "__pydantic_fields__"):
                names += field_names(part, f"{prefix}{name}.")
    return names


def _sentence(cls: type, fault: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"Unknown setting '{name}'{did_you_mean(name, field_names(cls)) or '.'}"
    if fault["type"] == "missing":
        return f"The setting '{name}' is missing."
    if isinstance(fault["input"], dict):  # a section holds other settings, which are not at fault
        return f"{name}: {fault['msg']}."
    problem = str(fault["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return f"{name}={fault['input']!r}: {problem}."
