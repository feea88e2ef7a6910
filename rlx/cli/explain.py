"""What `rlx train METHOD --help` says beyond the options: every field, with sources."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Sequence

from rlx.cli import catalogue, experiment, fields
from rlx.cli.errors import UsageError


def method(name: str, source: str | None = None) -> str:
    """Explain a method: its docstring, its fields, and the options of its data."""
    module = catalogue.load_method(name)
    source = source or catalogue.source_name(module)
    return "\n".join(
        [
            f"{name}: {inspect.cleandoc(module.__doc__ or '')}",
            "",
            "fields (--set name=value):",
            _table(fields.describe(module.Config)),
            "",
            f"data source {source} (--source-set name=value):",
            _table(_options(source)),
        ]
    )


def _options(name: str) -> list[fields.Field]:
    try:
        maker = catalogue.load_source(name)
    except UsageError as error:
        return [fields.Field(name, "", "", str(error))]
    hints = typing.get_type_hints(maker)
    texts = argument_texts(inspect.getdoc(maker) or "")
    return [
        fields.Field(
            option,
            fields.type_name(hints.get(option, object)),
            fields.shown(parameter.default),
            texts.get(option, ""),
        )
        for option, parameter in experiment.source_options(maker).items()
    ]


def argument_texts(docstring: str) -> dict[str, str]:
    """Return what the `Args:` section of a docstring says of each argument."""
    _, _, section = docstring.partition("\nArgs:\n")
    section = re.split(r"\n\S", section, maxsplit=1)[0]
    found: dict[str, str] = {}
    for part in re.split(r"\n(?=  \w)", "\n" + section):
        name, colon, text = part.strip().partition(":")
        if colon:
            found[name] = " ".join(text.split())
    return found


def _table(rows: Sequence[fields.Field]) -> str:
    width = min(shutil.get_terminal_size((88, 24)).columns, 100)
    lines = []
    for row in rows:
        kind = f" ({row.type})" if row.type else ""
        default = f" = {row.default}" if row.default != "" else ""
        lines.append(f"  {row.name}{default}{kind}")
        lines += textwrap.wrap(
            row.text, width, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines)
