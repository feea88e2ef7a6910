"""Head maps: whose they are, and that a file gives the same map again or an error."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from rlx.generation import heads
from rlx.generation.heads import HeadMap
from rlx.networks import transformer

CONFIG = transformer.Config(
    vocabulary_size=5, width=16, num_layers=3, num_heads=4, num_kv_heads=2
)
ROWS = ((True, False), (False, False), (True, True))
MAP = HeadMap(ROWS, sink=4, window=8, model=heads.fingerprint(CONFIG))


def test_the_share_of_streaming_heads() -> None:
    assert MAP.streaming_share == 0.5
    assert heads.all_retrieval(CONFIG).streaming_share == 0
    everywhere = heads.all_streaming(CONFIG, sink=2, window=3)
    assert (everywhere.streaming_share, everywhere.sink, everywhere.window) == (1, 2, 3)


def test_a_map_fits_its_model_longer_or_in_another_precision() -> None:
    for changed in ({}, {"max_length": 4096}, {"dtype": "bfloat16"}, {"lora_rank": 2}):
        heads.check(MAP, dataclasses.replace(CONFIG, **changed))
    heads.check(heads.all_retrieval(CONFIG), CONFIG)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_layers": 2}, "of 3 layers of 2 key-value heads, the model has 2 of 2"),
        ({"num_kv_heads": 4}, "the model has 3 of 4"),
        ({"rope_base": 5e5}, "another model .this one has rope_base=500000.0."),
        ({"width": 32}, "width=32, head_width=8, hidden_width="),
    ],
)
def test_a_map_of_another_model_is_refused(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        heads.check(MAP, dataclasses.replace(CONFIG, **change))


@pytest.mark.parametrize(
    "rows", [(), ((),), ((True,), (True, False)), [[True]], ((1,),), "TF", (None,)]
)
def test_only_rectangles_of_truths_are_maps(rows: object) -> None:
    with pytest.raises(ValueError, match="a tuple of layers"):
        HeadMap(rows)


@pytest.mark.parametrize("limits", [(-1, 4), (0, 0)])
def test_sink_and_window_have_ranges(limits: tuple) -> None:
    with pytest.raises(ValueError, match="sink must be >= 0 and window >= 1"):
        HeadMap(ROWS, *limits)


def test_a_file_gives_the_same_map(tmp_path: pathlib.Path) -> None:
    assert heads.save(MAP, tmp_path) == tmp_path / heads.NAME
    assert heads.load(tmp_path) == MAP
    other = dataclasses.replace(MAP, sink=0)
    heads.save(other, tmp_path / heads.NAME)
    assert heads.load(tmp_path / heads.NAME) == other
    assert hash(heads.load(tmp_path)) == hash(other)
    assert [file.name for file in tmp_path.iterdir()] == [heads.NAME]


def test_every_truncated_file_is_refused(tmp_path: pathlib.Path) -> None:
    file = heads.save(MAP, tmp_path)
    whole = file.read_bytes()
    for size in range(len(whole) - 1):  # without the last newline it is whole
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is no head map"):
            heads.load(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "else"}, "does not say 'rlx head map 1'"),
        ({"sink": "4"}, "must hold retrieval, sink, window, model"),
        ({"sink": True}, "must hold"),
        ({"more": 1}, "must hold"),
        ({"window": 0}, "window >= 1"),
        ({"retrieval": [[True], [True, False]]}, "a tuple of layers"),
        ({"retrieval": [1, 2]}, "a tuple of layers"),
    ],
)
def test_foreign_files_are_refused(
    change: dict, words: str, tmp_path: pathlib.Path
) -> None:
    file = heads.save(MAP, tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=words):
        heads.load(file)


def test_no_file_and_no_json_object_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        heads.load(tmp_path)
    (tmp_path / heads.NAME).write_bytes(b"\xff\x00")
    with pytest.raises(ValueError, match="is no head map"):
        heads.load(tmp_path)
    (tmp_path / heads.NAME).write_text("[1]")
    with pytest.raises(ValueError, match="is no head map"):
        heads.load(tmp_path)
