"""A rewriter in its run folder, and `rlx style`."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import pytest

from rlx import rewriter
from rlx.cli import main
from rlx.data import style_corpus
from rlx.data.styles import Texts
from rlx.files import RunFolderError
from rlx.generation.sampling import Sampling
from rlx.networks import transformer
from rlx.networks.transformer_controls import extended

TEXTS = Texts({"plain": ["go to bed now."], "holy": ["go thou unto thy bed."]}, {})


@pytest.fixture(scope="module")
def made() -> rewriter.Rewriter:
    """A decoder that has learned nothing: what is tested is the way to it and back."""
    words = style_corpus.tokenizer(TEXTS, 280)
    shape = transformer.Config(
        words.vocabulary_size, width=8, num_layers=1, num_heads=2, max_length=24
    )
    sampling = Sampling(6, top_p=0.9, stop_tokens=(words.end,), pad_token=words.pad)
    layout = rewriter.Layout(("plain", "holy"), 12, shape, sampling)
    longer = extended(shape, layout.controls.size)
    params = transformer.init(longer, jax.random.key(0))
    large = jax.tree.map(lambda x: 10.0 * x, params)  # so that words differ in chance
    return rewriter.Rewriter(layout, words, large)


@pytest.fixture(scope="module")
def run(
    made: rewriter.Rewriter, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    path = tmp_path_factory.mktemp("runs") / "style"
    return rewriter.save(path, made, step=7, seed=3)


def test_a_run_folder_holds_all_that_is_needed(
    made: rewriter.Rewriter, run: pathlib.Path
) -> None:
    found = rewriter.load(run)
    assert found.layout == made.layout
    jax.tree.map(np.testing.assert_array_equal, found.params, made.params)
    for sentence in ("Go to bed!", "unto 7"):
        for style in made.layout.styles:
            options = {"samples": 3, "seed": 5}
            asked = (sentence, style)
            said = rewriter.rewrite(found, *asked, **options)
            assert said == rewriter.rewrite(made, *asked, **options)
            assert len(said) == 3
    told = json.loads((run / "config.json").read_text())
    assert (told["kind"], told["seed"]) == ("rewriter", 3)


def test_style_and_seed_matter(made: rewriter.Rewriter) -> None:
    said = {
        (style, seed): tuple(
            rewriter.rewrite(made, "go to bed", style, samples=4, seed=seed)
        )
        for style in made.layout.styles
        for seed in (0, 1)
    }
    assert len(set(said.values())) == 4


def test_control_words_are_never_said(made: rewriter.Rewriter) -> None:
    """Embeddings of control words that outweigh all others: still not said."""
    words = made.layout.shape.vocabulary_size
    loud = made.params["embedding"].at[words:].mul(1e3)
    told = rewriter.Rewriter(
        made.layout, made.tokenizer, {**made.params, "embedding": loud}
    )
    sampler = made.layout.sampler()
    prompt = np.full((4, 3), 5, np.int32)
    found = sampler(told.params, prompt, np.ones((4, 3), bool), jax.random.key(0))
    assert int(np.max(found.tokens)) < words


@pytest.mark.parametrize(
    ("sentence", "style", "word"),
    [
        ("go to bed", "holly", "unknown style 'holly': .* plain, holy; did you mean"),
        (" ... ", "holy", "the sentence is empty"),
        ("go " * 30, "holy", "too long: it has .* tokens, this run reads 11"),
    ],
)
def test_what_cannot_be_is_explained(
    made: rewriter.Rewriter, sentence: str, style: str, word: str
) -> None:
    with pytest.raises(rewriter.RewriteError, match=word):
        rewriter.rewrite(made, sentence, style)


def test_the_command_rewrites(
    made: rewriter.Rewriter, run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["style", str(run), "Go to bed!", "--to", "holy", "--samples", "2"]
    assert main(argv) == 0
    expected = rewriter.rewrite(made, "Go to bed!", "holy", samples=2)
    assert capsys.readouterr().out == "\n".join(expected) + "\n"
    assert main([*argv, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"style": "holy", "sentences": expected}
    assert main(["style", str(run)]) == 0
    assert "plain, holy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["go to bed", "--to", "tweets"], 2, "knows plain, holy"),
        (["go to bed"], 2, "--to STYLE"),
        (["go " * 30, "--to", "holy"], 2, "too long"),
        (["go", "--to", "holy", "--samples", "0"], 2, "positive integer"),
    ],
)
def test_the_command_explains_in_one_line(
    run: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    message: str,
) -> None:
    assert main(["style", str(run), *words]) == status
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_no_run_and_another_kind_of_run_are_told(
    run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["style", str(run.with_name("stile")), "go", "--to", "holy"]) == 1
    assert "no such run folder" in capsys.readouterr().err
    other = tmp_path / "other"
    from rlx.record import RunFolder

    RunFolder.create(other, {"method": "ppo"}).close()
    with pytest.raises(RunFolderError, match="no run of a rewriter"):
        rewriter.load(other)
    with pytest.raises(RunFolderError, match="is not empty"):
        rewriter.save(run, rewriter.load(run))
