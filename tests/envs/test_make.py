"""Environments by name: dispatch, suggestions, missing libraries."""

from __future__ import annotations

import pytest

import envs


def test_names_have_their_prefixes() -> None:
    names = envs.names()
    assert {"hopper", "probe/chain", "brax/ant", "diffusion/pendulum"} <= set(names)
    assert names == sorted(set(names))


def test_make_passes_options_on() -> None:
    assert envs.make("probe/chain", time_limit=7).spec.time_limit == 7


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Hopper-v5", "hopper"),
        ("hoper", "hopper"),
        ("chain", "probe/chain"),
        ("probe/chian", "probe/chain"),
        ("brx/ant", "brax/ant"),
    ],
)
def test_unknown_name_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"Did you mean.*'{nearest}'") as error:
        envs.make(name)
    assert "rlx list" in str(error.value) and "\n" not in str(error.value)


def test_unknown_name_without_a_neighbour() -> None:
    with pytest.raises(ValueError, match="No environment 'zzzzzz'. `rlx list`"):
        envs.make("zzzzzz")


def test_missing_library_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent = envs.Suite("envs.absent", ("no_such_library",), "'rlx[absent]'")
    monkeypatch.setitem(envs.SUITES, "absent", absent)
    with pytest.raises(ModuleNotFoundError, match="pip install 'rlx.absent.'"):
        envs.make("absent/anything")
    assert not any(name.startswith("absent/") for name in envs.names())
    assert envs.missing()["absent"] == "pip install 'rlx[absent]'"
