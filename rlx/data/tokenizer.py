"""Byte-level byte-pair encoding, trained in process.

Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; on bytes: Radford et al. 2019
(GPT-2). Every UTF-8 text comes back exactly: there is no unknown word and no
normalisation. Special tokens never come out of a text, whatever it says: they are put
in by number.

The `tokenizers` library does the work, imported here alone and only when used:
`pip install 'rlx[language]'`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rlx import files
from rlx.data.jsonl import LanguageDataError

PAD, END = "<pad>", "<eos>"
BYTES = 256


class Tokenizer:
    """Text to token numbers and back."""

    def __init__(self, inner: Any, pad: str = PAD, end: str = END):
        """Wraps a `tokenizers.Tokenizer`.

        Args:
          inner: what is wrapped; texts lose the power to name its special tokens.
          pad: name of the padding token.
          end: name of the token that ends a response.

        Raises:
          LanguageDataError: it does not know one of the names.
        """
        self._inner = inner
        self._inner.encode_special_tokens = True
        self._inner.no_padding()
        self._inner.no_truncation()
        self.pad, self.end = self.special(pad), self.special(end)

    @property
    def vocabulary_size(self) -> int:
        """V, special tokens included."""
        return int(self._inner.get_vocab_size(with_added_tokens=True))

    def special(self, name: str) -> int:
        """The number of a special token.

        Raises:
          LanguageDataError: there is none of that name.
        """
        number = self._inner.token_to_id(name)
        if number is None:
            raise LanguageDataError(f"the tokenizer has no token {name!r}")
        return int(number)

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text, without any special token.

        Raises:
          LanguageDataError: the text holds half of a surrogate pair.
        """
        try:
            return list(self._inner.encode(text, add_special_tokens=False).ids)
        except (UnicodeEncodeError, TypeError) as error:
            raise LanguageDataError(
                "a text must be str without halves of surrogate pairs"
            ) from error

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many, in parallel."""
        found = self._inner.encode_batch(list(texts), add_special_tokens=False)
        return [list(x.ids) for x in found]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token numbers, special ones left out.

        Bytes that are no UTF-8 (of a text cut within a character) become U+FFFD.
        """
        return self._inner.decode([int(x) for x in tokens], skip_special_tokens=True)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes one JSON file, whole or not at all.

        Raises:
          rlx.files.RunFolderError: the disk is full or refuses.
        """
        path = Path(path)
        with files.explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, self._inner.to_str(pretty=False).encode())
        return path


def train(
    texts: Iterable[str],
    vocabulary_size: int,
    *,
    special_tokens: Sequence[str] = (),
    pad: str = PAD,
    end: str = END,
) -> Tokenizer:
    """Learns merges from texts; pad is 0, end is 1, `special_tokens` follow.

    The same texts give the same tokenizer. Few texts may hold fewer merges than asked:
    see `Tokenizer.vocabulary_size`.

    Args:
      texts: what to learn from.
      vocabulary_size: V at most; at least 256 bytes and the special tokens.
      special_tokens: further ones, such as reward tokens.
      pad: name of the padding token.
      end: name of the end of a response.

    Raises:
      LanguageDataError: V is too small, a special token is named twice, or the
        `tokenizers` library is missing.
    """
    library = require_library()
    special = [pad, end, *special_tokens]
    if len(set(special)) < len(special):
        raise LanguageDataError(f"a special token is named twice: {special}")
    if vocabulary_size < BYTES + len(special):
        raise LanguageDataError(
            f"vocabulary_size={vocabulary_size} is too small: the bytes and the "
            f"special tokens alone are {BYTES + len(special)}"
        )
    inner = library.Tokenizer(library.models.BPE())
    inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=special,
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return Tokenizer(inner, pad, end)


def load(path: str | os.PathLike[str], pad: str = PAD, end: str = END) -> Tokenizer:
    """Reads what `save` wrote, or another `tokenizer.json` with these special tokens.

    Raises:
      LanguageDataError: no file, no tokenizer in it, or it lacks one of the names.
    """
    path, library = Path(path), require_library()
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
        inner = library.Tokenizer.from_str(text)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise LanguageDataError(f"{path}: {reason}") from error
    except Exception as error:  # the library raises bare Exceptions
        raise LanguageDataError(f"{path}: not a whole tokenizer: {error}") from error
    return Tokenizer(inner, pad, end)


def require_library() -> Any:
    """The `tokenizers` module.

    Raises:
      LanguageDataError: it is not installed.
    """
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise LanguageDataError(
            "tokenizers is missing: pip install 'rlx[language]'"
        ) from error
    return tokenizers
