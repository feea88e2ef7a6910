"""`rlx style`: a sentence in another style, by a trained rewriter."""

from __future__ import annotations

import json
from typing import Any

from rlx import rewriter
from rlx.cli import start
from rlx.cli.errors import UsageError


def style_run(arguments: Any) -> int:
    """Rewrite a sentence, or list the styles that a run knows."""
    start.prepare()
    found = rewriter.load(arguments.run)
    known = found.layout.styles
    if arguments.sentence is None and arguments.to is None:
        print(f"{arguments.run} writes in the styles {', '.join(known)}")
        return 0
    if arguments.sentence is None or arguments.to is None:
        raise UsageError(
            f'rlx style {arguments.run} "a sentence" --to STYLE, where STYLE is one of '
            f"{', '.join(known)}"
        )
    try:
        rows = rewriter.rewrite(
            found,
            arguments.sentence,
            arguments.to,
            samples=arguments.samples,
            seed=arguments.seed,
        )
    except rewriter.RewriteError as error:
        raise UsageError(str(error)) from error
    if arguments.json:
        print(json.dumps({"style": arguments.to, "sentences": rows}))
        return 0
    print("\n".join(rows))
    return 0
