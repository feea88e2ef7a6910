"""The fields of configs on a command line: described, read, written and refused."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, Literal

import pytest

from rlx.cli import arguments, catalogue, errors, explain, fields


@dataclasses.dataclass(frozen=True)
class Inner:
    """Nested."""

    sizes: tuple[int, ...] = (64, 64)
    """Units,
    over two lines."""


@dataclasses.dataclass(frozen=True)
class Base:
    """Inherited from."""

    rate: float = 1e-3
    """Old text."""
    count: int = 3
    """How many."""


@dataclasses.dataclass(frozen=True)
class Config(Base):
    """All kinds of fields."""

    rate: float = 1e-2
    """New text (a paper)."""
    limit: float | None = None
    """A limit."""
    kind: Literal["near", "far"] = "near"
    """A choice."""
    pair: tuple[int, float] = (1, 2.0)
    """Two."""
    flag: bool = False
    """On or off."""
    name: str = "x"
    """A text."""
    inner: Inner = Inner()
    """A nest."""


def test_fields_are_described_with_their_inheritance() -> None:
    described = {field.name: field for field in fields.describe(Config)}
    assert list(described) == [
        *("rate", "count", "limit", "kind", "pair", "flag", "name", "inner.sizes")
    ]
    assert described["rate"][1:] == ("number", "0.01", "New text (a paper).")
    assert described["limit"][1:3] == ("number or none", "none")
    assert described["kind"][1:3] == ("'near' or 'far'", "near")
    assert described["pair"][1:3] == ("integer,number", "1,2.0")
    assert described["flag"][1:3] == ("true or false", "false")
    assert described["inner.sizes"][1:] == (
        *("integers a,b,...", "64,64", "Units, over two lines."),
    )


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("rate=3e-4", {"rate": 3e-4}),
        ("rate=inf", {"rate": math.inf}),
        ("rate=1", {"rate": 1.0}),
        ("count=1e3", {"count": 1000}),
        ("count=1_000", {"count": 1000}),
        ("limit=2", {"limit": 2.0}),
        ("limit=None", {"limit": None}),
        ("kind=far", {"kind": "far"}),
        ("pair=(3, 4)", {"pair": (3, 4.0)}),
        ("flag=yes", {"flag": True}),
        ("name=a=b", {"name": "a=b"}),
        ("name=none", {"name": "none"}),
        ("inner.sizes=32", {"inner": Inner((32,))}),
        ("inner.sizes=[8,9,10]", {"inner": Inner((8, 9, 10))}),
    ],
)
def test_values_are_read_as_annotated(text: str, changed: dict[str, Any]) -> None:
    found = fields.set_values(Config(), [text], "it")
    assert found == dataclasses.replace(Config(), **changed)
    for name, value in changed.items():
        assert type(getattr(found, name)) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count=1.5", "it's count: expected integer, got '1.5'"),
        ("count=many", "expected integer, got 'many'"),
        ("limit=x", "expected number or none, got 'x'"),
        ("kind=fat", "expected 'near' or 'far', got 'fat'; did you mean 'far'"),
        ("pair=1", "expected integer,number, got '1'"),
        ("flag=maybe", "expected true or false, got 'maybe'"),
        ("inner.sizes=1,b", "expected integers a,b,..., got '1,b'"),
        ("inner.size=1", "it has no field 'size'; did you mean 'sizes'"),
        ("rate.x=1", "rate has no fields of its own"),
    ],
)
def test_other_values_are_refused(text: str, message: str) -> None:
    with pytest.raises(errors.UsageError) as caught:
        fields.set_values(Config(), [text], "it")
    assert message in str(caught.value)


def test_configs_come_back_from_json() -> None:
    config = Config(limit=math.inf, inner=Inner((1,)), rate=2.0)
    kept = json.loads(json.dumps(explain.experiment.to_json(config)))
    kept["rate"] = 2  # as another writer of JSON would have it
    found = fields.from_json(Config, {**kept, "limit": math.inf}, "here")
    assert found == config
    assert type(found.rate) is float
    with pytest.raises(errors.UsageError, match="fields more differ"):
        fields.from_json(Config, {**kept, "more": 1}, "here")


def test_the_data_takes_what_it_shares_with_the_method(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def source(env: Any, *, rate: float = 9.0, count: int = 9, size: int = 9) -> None:
        """Shares `rate` and `count` with the method."""

    monkeypatch.setattr(catalogue, "load_source", lambda name: source)
    found = explain.experiment.source_values("source", Base(), ["count=5"])
    assert found == {"rate": 1e-3, "count": 5, "size": 9}


def test_literals() -> None:
    texts = ("true", "none", "3", "0.5", "-inf", "(1, 2)", "native", "[1,")
    expected = (True, None, 3, 0.5, -math.inf, (1, 2), "native", "[1,")
    assert tuple(map(fields.literal, texts)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000000", 10**6),
        ("1_000", 1000),
        ("1e6", 10**6),
        ("1M", 10**6),
        ("2.5k", 2500),
    ],
)
def test_steps(text: str, expected: int) -> None:
    assert arguments.steps(text) == expected


def test_seeds() -> None:
    assert arguments.seeds("3") == (0, 1, 2)
    assert arguments.seeds("3,") == (3,)
    assert arguments.seeds("5,1") == (5, 1)
    for text in ("0", "-1", "1,1", "a", "1,-2", ","):
        with pytest.raises(arguments.argparse.ArgumentTypeError):
            arguments.seeds(text)


def test_argument_texts() -> None:
    text = (
        "One.\n\nArgs:\n  a: first,\n    goes on.\n  b: second: x.\n\nReturns:\n  c: d."
    )
    assert explain.argument_texts(text) == {"a": "first, goes on.", "b": "second: x."}
    assert explain.argument_texts("One.") == {}
