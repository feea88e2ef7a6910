"""Texts to arrays: tokenizer, JSON lines, packing, minibatches."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.data import jsonl, language, packing, preferences, prompts, tokenizer
from rlx.data.jsonl import LanguageDataError
from rlx.types import Policy
from tests.methods import language_cases as cases

TEXTS = ["the cat sat on the mat", "the dog sat on the log"] * 4


@pytest.fixture(scope="module")
def words() -> tokenizer.Tokenizer:
    return tokenizer.train(TEXTS, 270, special_tokens=("<reward_1>",))


HARD = [
    "",
    " leading and trailing \n\t\r\n",
    "naïve — ŭ 漢字 🙂👨‍👩‍👧 \u202e\u0301",
    "the cat <eos> <pad> <reward_1> sat",
    "\x00\x7f\u2028",
    "".join(map(chr, range(1, 0xD800, 97))),
]


@pytest.mark.parametrize("text", HARD)
def test_every_text_comes_back(words: tokenizer.Tokenizer, text: str) -> None:
    tokens = words.encode(text)
    assert words.decode(tokens) == text
    assert not {words.pad, words.end, words.special("<reward_1>")} & set(tokens)
    assert words.encode_all([text, "a"])[0] == tokens


def test_merges_shorten_and_special_tokens_are_left_out(
    words: tokenizer.Tokenizer,
) -> None:
    assert (words.pad, words.end, words.vocabulary_size) == (0, 1, 270)
    tokens = words.encode(TEXTS[0])
    assert len(tokens) < len(TEXTS[0])
    assert words.decode([words.pad, *tokens, words.end, words.pad]) == TEXTS[0]


def test_a_saved_tokenizer_is_the_same(words: tokenizer.Tokenizer, tmp_path) -> None:
    path = words.save(tmp_path / "run" / "tokenizer.json")
    assert [x.name for x in path.parent.iterdir()] == ["tokenizer.json"]
    again = tokenizer.load(path)
    assert (again.pad, again.end) == (words.pad, words.end)
    for text in HARD + TEXTS:
        assert again.encode(text) == words.encode(text)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LanguageDataError, match="not a whole tokenizer"):
        tokenizer.load(path)
    with pytest.raises(LanguageDataError, match="no such file"):
        tokenizer.load(tmp_path / "nowhere.json")


def test_a_tokenizer_refuses(words: tokenizer.Tokenizer) -> None:
    with pytest.raises(LanguageDataError, match="too small.* 258"):
        tokenizer.train(TEXTS, 257)
    with pytest.raises(LanguageDataError, match="named twice"):
        tokenizer.train(TEXTS, 300, special_tokens=("<eos>",))
    with pytest.raises(LanguageDataError, match="surrogate"):
        words.encode("\ud800")
    with pytest.raises(LanguageDataError, match="no token '<bos>'"):
        words.special("<bos>")


# ------------------------------------------------------------------- JSON lines


def write(folder: pathlib.Path, *rows: object) -> pathlib.Path:
    path = folder / "data.jsonl"
    lines = [
        row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


GOOD = {"prompt": "the cat", "chosen": " sat", "rejected": " on"}


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b'{"prompt": "a"', "not JSON"),
        (b"[1, 2]", "not list"),
        (b"\xff\xfe", "not UTF-8"),
        ({"prompt": "a", "chosen": "b"}, "no field 'rejected', only chosen, prompt"),
        (GOOD | {"chosen": 3}, "'chosen' must be text, not int"),
        (GOOD | {"chosen": [{"role": "user"}]}, "conversation"),
        (b'{"prompt": "\\ud800", "chosen": "", "rejected": ""}', "surrogate"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line: object, word: str) -> None:
    path = write(tmp_path, GOOD, b"", line, GOOD)
    with pytest.raises(LanguageDataError, match=r"data\.jsonl, line 3: .*" + word):
        jsonl.read(path, preferences.FIELDS)


def test_no_file_and_no_lines_are_refused(tmp_path) -> None:
    with pytest.raises(LanguageDataError, match="no such file"):
        jsonl.read(tmp_path / "nowhere", ("prompt",))
    with pytest.raises(LanguageDataError, match="no lines"):
        jsonl.read(write(tmp_path, b"", b"  "), ("prompt",))


def test_preferences_become_arrays(tmp_path, words: tokenizer.Tokenizer) -> None:
    path = write(tmp_path, GOOD, GOOD | {"rejected": " sat"}, GOOD | {"prompt": "dog"})
    pairs, report = preferences.load(path, words, length=24)
    assert str(report).startswith("2 of 3 rows; chosen and rejected are the same: 1")
    assert report.dropped == {packing.IDENTICAL: [2]}
    assert pairs.chosen.tokens.shape == (2, 24)
    np.testing.assert_array_equal(pairs.weight, [1.0, 1.0])
    for rows, answer in ((pairs.chosen, " sat"), (pairs.rejected, " on")):
        for row, prompt in enumerate(("the cat", "dog")):
            real, said = rows.tokens[row][rows.mask[row]], rows.response[row]
            assert words.decode(real) == prompt + answer
            assert words.decode(rows.tokens[row][said]) == answer
            assert rows.tokens[row][said][-1] == words.end
            assert not said[~rows.mask[row]].any()
    demonstrations, _ = preferences.load_demonstrations(
        path, words, length=24, response="chosen"
    )
    np.testing.assert_array_equal(
        demonstrations.tokens[[0, 2]], np.asarray(pairs.chosen.tokens)
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"chosen": ""}, packing.EMPTY),
        ({"prompt": ""}, packing.EMPTY_PROMPT),
        ({"prompt": "xyz" * 20}, packing.LONG_PROMPT),
        ({"rejected": "xyz" * 20}, packing.LONG_RESPONSE),
    ],
)
def test_rows_at_fault_are_refused_or_dropped(
    tmp_path, words: tokenizer.Tokenizer, change: dict, word: str
) -> None:
    path = write(tmp_path, GOOD, GOOD | change)
    with pytest.raises(LanguageDataError, match=f"{word} in 1 of 2 rows .line 2"):
        preferences.load(path, words, length=24)
    pairs, report = preferences.load(path, words, length=24, drop=True)
    assert report.dropped == {word: [2]} and len(pairs.weight) == 1
    with pytest.raises(LanguageDataError, match="nothing is left"):
        preferences.load(write(tmp_path, GOOD | change), words, length=24, drop=True)


def test_prompts_are_padded_on_the_left(tmp_path, words: tokenizer.Tokenizer) -> None:
    path = write(tmp_path, {"prompt": "the cat"}, {"prompt": "a dog"})
    found, _ = prompts.load(path, words, length=12)
    for row, text in enumerate(("the cat", "a dog")):
        assert words.decode(found.tokens[row][found.mask[row]]) == text
        assert found.mask[row, -1] and (np.diff(found.mask[row].astype(int)) >= 0).all()
    with pytest.raises(LanguageDataError, match="longer than the window.*line 1"):
        prompts.load(write(tmp_path, {"prompt": "xyz" * 20}), words, length=12)
    with pytest.raises(LanguageDataError, match="at most 2 fit"):
        packing.left_padded([[1, 2, 3]], 2, 0)


# ------------------------------------------------------------------- minibatches

NOBODY = Policy(lambda *_: ((), (), ()), lambda: ())


def test_every_row_comes_once_in_an_epoch() -> None:
    rows = {"number": np.arange(7)}
    source = language.draw(rows, batch_size=2, order="epochs")
    following = jax.jit(lambda state, key: source.next(state, NOBODY, key)[:2])
    state, seen = source.init(jax.random.key(0), NOBODY), []
    for i in range(9):
        state, batch = following(state, jax.random.key(i))
        seen.append(np.asarray(batch["number"]))
    epochs = np.concatenate(seen).reshape(3, 6)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 6
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


def test_rows_with_replacement_are_uniform_and_go_over_other_arrays() -> None:
    source = language.draw({"number": np.arange(5)}, batch_size=2000)
    _, batch, _ = source.next((), NOBODY, jax.random.key(0))
    share = np.bincount(np.asarray(batch["number"]), minlength=5) / 2000
    np.testing.assert_allclose(share, 0.2, atol=0.04)
    other = source.over({"number": jnp.full(5, 9)})
    assert (other.next((), NOBODY, jax.random.key(0))[1]["number"] == 9).all()


def test_impossible_minibatches_are_refused() -> None:
    rows = {"number": np.arange(5)}
    for options, word in (
        ({"batch_size": 2, "order": "random"}, "order"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 6, "order": "epochs"}, "at most the 5 rows"),
    ):
        with pytest.raises(ValueError, match=word):
            language.draw(rows, **options)
    with pytest.raises(ValueError, match="no rows"):
        language.draw({"number": np.zeros(0)}, batch_size=1)


def test_the_policy_answers_prompts_and_is_scored() -> None:
    spec = cases.model(reference=True)
    rows = cases.sequences(6)
    asked = prompts.Prompts(rows.tokens[:, :3], rows.mask[:, :3])

    def act(observation: dict, carry: tuple, key: jax.Array) -> tuple:
        found = spec.sampler(
            spec.reference,
            observation["tokens"],
            observation["mask"],
            key,
            observation["samples"],
        )
        return (
            {"tokens": found.tokens, "mask": found.mask},
            carry,
            {"log_prob": found.log_prob},
        )

    source = prompts.respond(
        asked,
        batch_size=4,
        samples=3,
        score=lambda rows: jnp.sum(rows.response, axis=-1) * 1.0,
    )
    policy = Policy(act, lambda: ())
    _, batch, _ = jax.jit(lambda key: source.next((), policy, key))(jax.random.key(0))
    assert batch.sequences.tokens.shape == (4, 3, 7)
    for i in range(4):
        for k in range(3):
            np.testing.assert_array_equal(
                batch.sequences.tokens[i, k, :3], asked.tokens[batch.prompt[i]]
            )
    np.testing.assert_array_equal(batch.score, batch.sequences.response.sum(-1))
    answered = np.asarray(batch.sequences.response)
    assert not answered[..., :3].any() and answered[..., 3].all()
    assert (np.asarray(batch.log_prob)[~answered] == 0).all()
    assert len({row.tobytes() for row in np.asarray(batch.sequences.tokens[0])}) > 1
