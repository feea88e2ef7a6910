"""The fields of a `Config` on a command line: what they mean, and how to set them.

A field is documented by the string below it, the house's style, and typed by its
annotation. `--set field=value` reads the value as the annotation says.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from rlx.cli.errors import UsageError, nearest

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class Field(NamedTuple):
    """One field of a `Config`, as `--help` shows it."""

    name: str
    type: str
    default: str
    text: str
    """What it means and where the default comes from."""


def describe(config: type) -> list[Field]:
    """Return all fields of a dataclass, inherited ones first.

    The fields of a nested dataclass follow under dotted names.
    """
    texts, hints = _texts(config), typing.get_type_hints(config)
    found = []
    for field in dataclasses.fields(config):
        default = _default(field)
        if dataclasses.is_dataclass(default):
            found += [
                inner._replace(name=f"{field.name}.{inner.name}")
                for inner in describe(type(default))
            ]
            continue
        kind = type_name(hints[field.name])
        found.append(Field(field.name, kind, shown(default), texts.get(field.name, "")))
    return found


def set_values(config: Any, assignments: Sequence[str], where: str) -> Any:
    """Return a copy of a dataclass with `field=value` texts applied, dots for nesting.

    Args:
      config: an instance of a frozen dataclass.
      assignments: texts such as `learning_rate=1e-3` or `network.hidden_sizes=64,64`.
      where: what the config belongs to, for messages.

    Raises:
      UsageError: no `=`, no such field, or a value of another type.
    """
    for name, text in split(assignments).items():
        config = _set(config, name.split("."), text, f"{where}'s {name}", where)
    return config


def split(assignments: Sequence[str]) -> dict[str, str]:
    """Return `name=value` texts as a mapping.

    Raises:
      UsageError: a text without `=`, or a name given twice.
    """
    found: dict[str, str] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"{text!r} is no assignment: write name=value")
        if name.strip() in found:
            raise UsageError(f"{name.strip()} is set twice")
        found[name.strip()] = value.strip()
    return found


def literal(text: str) -> Any:
    """Return a number (or inf), boolean, None or tuple of Python, else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() == "none":
        return None
    if text.lower() in ("inf", "-inf"):
        return float(text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def convert(text: str, annotation: Any, name: str) -> Any:
    """Read a text as a value of an annotated type.

    Raises:
      UsageError: it is none; says what is expected.
    """
    try:
        return _convert(text, annotation)
    except ValueError as error:
        hint = str(error) if str(error).startswith(";") else ""
        expected = type_name(annotation)
        raise UsageError(f"{name}: expected {expected}, got {text!r}{hint}") from None


def from_json(config: type, values: Mapping[str, Any], where: str) -> Any:
    """Return the dataclass that `rlx.json_values.to_json` turned into `values`.

    Raises:
      UsageError: a field is missing or unknown, as in a run of another version, or
        holds what JSON cannot (a function).
    """
    hints, known = typing.get_type_hints(config), dataclasses.fields(config)
    names = {field.name for field in known}
    if names != set(values):
        wrong = ", ".join(sorted(names ^ set(values)))
        raise UsageError(
            f"{where} was made by another version of this method, the fields {wrong} "
            "differ: use the rlx that made it"
        )
    found = {}
    for field in known:
        value, kind = values[field.name], hints[field.name]
        nested = _default(field)
        if dataclasses.is_dataclass(nested) and isinstance(value, Mapping):
            value = from_json(type(nested), value, where)
        elif isinstance(value, list):
            value = tuples(value)
        elif kind is float:
            # 1 for 1.0, and the texts for the numbers that JSON lacks.
            value = convert(str(value), float, f"{where}: {field.name}")
        elif "Callable" in str(kind) and value is not None:
            raise UsageError(
                f"{where}: the field {field.name} is a function: use Python"
            )
        found[field.name] = value
    return config(**found)


def type_name(annotation: Any) -> str:
    """Return a type in words: `number`, `integers a,b,...`, `number or none`."""
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(type_name(part) for part in get_args(annotation))
    if get_origin(annotation) is Literal:
        return " or ".join(repr(choice) for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return f"{type_name(inner[0])}s a,b,..."
        return ",".join(type_name(part) for part in inner)
    names = {float: "number", int: "integer", str: "text", bool: "true or false"}
    if annotation is type(None):
        return "none"
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


# ------------------------------------------------------------------------------ details


def _texts(config: type) -> dict[str, str]:
    """Read the strings below the fields, of a class and of those it inherits from."""
    found: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body  # type: ignore[attr-defined]
        for field, below in zip(body, body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign):
                continue
            if not isinstance(below, ast.Expr) or not isinstance(
                below.value, ast.Constant
            ):
                continue
            found[field.target.id] = " ".join(str(below.value.value).split())  # type: ignore[union-attr]
    return found


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def shown(value: Any) -> str:
    """Return a default as a command line would give it."""
    if value in (dataclasses.MISSING, inspect.Parameter.empty):
        return "required"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(shown(item) for item in value)
    return getattr(value, "__name__", None) or str(value)


def _set(config: Any, path: list[str], text: str, name: str, where: str) -> Any:
    known = {field.name for field in dataclasses.fields(config)}
    head, *rest = path
    if head not in known:
        raise UsageError(
            f"{where} has no field {head!r}{nearest(head, known)} (`rlx train {where} "
            "--help` lists them)"
        )
    value = getattr(config, head)
    if rest and not dataclasses.is_dataclass(value):
        raise UsageError(f"{name}: {head} has no fields of its own")
    if rest:
        return dataclasses.replace(
            config, **{head: _set(value, rest, text, name, where)}
        )
    kind = typing.get_type_hints(type(config))[head]
    return dataclasses.replace(config, **{head: convert(text, kind, name)})


def _convert(text: str, kind: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _first(text, inner)
    if origin is tuple:
        return _tuple(text, inner)
    if origin is Literal:
        if text in inner:
            return text
        raise ValueError(nearest(text, map(str, inner)))
    return _SCALARS.get(kind, literal)(text)


def _none(text: str) -> None:
    if text.lower() != "none":
        raise ValueError


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError
    return text.lower() in _TRUE


def _first(text: str, kinds: Sequence[Any]) -> Any:
    # None first: "none" is also a text.
    for kind in sorted(kinds, key=lambda kind: kind is not type(None)):
        try:
            return _convert(text, kind)
        except ValueError:
            continue
    raise ValueError


def _tuple(text: str, inner: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
    if len(inner) == 2 and inner[1] is Ellipsis:
        inner = (inner[0],) * len(parts)
    if len(inner) != len(parts):
        raise ValueError
    return tuple(_convert(part, kind) for part, kind in zip(parts, inner, strict=True))


def integer(text: str) -> int:
    """Read an integer; `1e6` and `1_000_000` are integers too.

    Raises:
      ValueError: it is none.
    """
    try:
        return int(text)
    except ValueError:
        number = float(text)
    if not number.is_integer():
        raise ValueError
    return int(number)


def tuples(value: Any) -> Any:
    """Return a value of JSON with lists as tuples, at any depth."""
    if isinstance(value, Mapping):
        return {name: tuples(item) for name, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


_SCALARS: dict[Any, Callable[[str], Any]] = {
    type(None): _none,
    bool: _boolean,
    int: integer,
    float: float,
    str: str,
}
