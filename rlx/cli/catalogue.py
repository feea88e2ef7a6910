"""Methods and data sources by the name of their module: nothing is registered.

Every module of `rlx/methods` with a `Config` and a `make` is a method. Every module of
`rlx/data` with a function of the module's own name is a data source. They are found by
reading the files, so that a list costs no import.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from rlx import data as data_package
from rlx import methods as methods_package
from rlx.cli.errors import UsageError, nearest

DEFAULT_SOURCE = "rollout"


def methods() -> dict[str, str]:
    """Return every method with the first line of its docstring."""
    return _modules(methods_package, lambda name: {"Config", "make"})


def sources() -> dict[str, str]:
    """Return every data source with the first line of its docstring."""
    return _modules(data_package, lambda name: {name})


def load_method(name: str) -> ModuleType:
    """Import a method.

    Raises:
      UsageError: no such method; names the nearest.
    """
    known = methods()
    if name not in known:
        raise UsageError(
            f"no method {name!r}{nearest(name, known)} there are {', '.join(known)}"
        )
    return importlib.import_module(f"{methods_package.__name__}.{name}")


def source_name(method: ModuleType) -> str:
    """Return the data source a method learns from.

    A method module says it in `SOURCE`; without one it is `rollout`.
    """
    return getattr(method, "SOURCE", DEFAULT_SOURCE)


def load_source(name: str) -> Callable[..., Any]:
    """Import the function `(env, **options) -> DataSource` of a data source.

    Raises:
      UsageError: no such source, or one that is not made from an environment.
    """
    known = sources()
    if name not in known:
        raise UsageError(
            f"no data source {name!r}{nearest(name, known)} there are "
            f"{', '.join(known)}"
        )
    module = importlib.import_module(f"{data_package.__name__}.{name}")
    maker = getattr(module, name)
    if next(iter(inspect.signature(maker).parameters), None) != "env":
        raise UsageError(
            f"the data source {name!r} is not made from an environment alone: use it "
            f"from Python, see rlx.data.{name}"
        )
    return maker


def _modules(
    package: ModuleType, required: Callable[[str], set[str]]
) -> dict[str, str]:
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("_"):
            continue
        path = Path(module.module_finder.path, module.name)  # type: ignore[union-attr]
        path = path / "__init__.py" if module.ispkg else path.with_suffix(".py")
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except SyntaxError as error:  # one broken file must not hide the others
            found[module.name] = f"cannot be read: line {error.lineno}, {error.msg}"
            continue
        if required(module.name) <= _defined(tree):
            found[module.name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return dict(sorted(found.items()))


def _defined(tree: ast.Module) -> set[str]:
    """Return the names that a module defines or imports at its top level."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {item.id for item in node.targets if isinstance(item, ast.Name)}
    return names
