"""Values as strict JSON, and back.

JSON has no NaN and no infinity: both are written as the strings "NaN", "Infinity" and
"-Infinity", and are floats again when read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_json(value: Any) -> Any:
    """Turn a value into what strict JSON can hold.

    Dataclasses become objects, arrays lists, functions and classes their names. A
    float32 is written in the fewest digits that give the same float32 again.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: to_json(getattr(value, f.name)) for f in fields}
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and not isinstance(value, np.generic):
        return value if math.isfinite(value) else _special(value)
    if isinstance(value, np.generic):
        exact = isinstance(value, np.floating) and value.dtype.itemsize <= 4
        return to_json(float(str(value)) if exact else value.item())
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.asarray(value)
        if array.dtype.kind == "V":  # bfloat16 and its kin
            array = array.astype(np.float32)
        return to_json(array[()] if array.ndim == 0 else list(array))
    return getattr(value, "__qualname__", None) or str(value)


def _special(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def from_json(value: Any) -> Any:
    """Undo what `to_json` did to the floats that JSON lacks."""
    if isinstance(value, dict):
        return {name: from_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return _SPECIAL.get(value, value) if isinstance(value, str) else value


def differences(
    saved: Mapping[str, Any], given: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """Name every value of `given` that is another one in `saved`, in words.

    A command repeated with `--resume` must say what the run folder says; keys that
    `given` lacks are not compared.
    """
    found = []
    for name, value in to_json(given).items():
        there = to_json(saved.get(name, "absent"))
        if isinstance(value, dict) and isinstance(there, dict):
            found += differences(there, value, f"{prefix}{name}.")
        elif there != value:
            found.append(f"{prefix}{name} is {there} there and {value} here")
    return found
