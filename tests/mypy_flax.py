"""A mypy plugin: records made with `flax.struct.dataclass` have `.replace(...)`."""

from __future__ import annotations

from collections.abc import Callable

from mypy.nodes import ARG_STAR2, Argument, Var
from mypy.plugin import ClassDefContext, Plugin
from mypy.plugins import common, dataclasses
from mypy.types import AnyType, TypeOfAny
from mypy.typevars import fill_typevars


def _add_replace(context: ClassDefContext) -> None:
    anything = AnyType(TypeOfAny.explicit)
    updates = Argument(Var("updates", anything), anything, None, ARG_STAR2)
    common.add_method(context, "replace", [updates], fill_typevars(context.cls.info))


def _make(context: ClassDefContext) -> bool:
    _add_replace(context)
    return dataclasses.dataclass_class_maker_callback(context)


class FlaxPlugin(Plugin):
    def get_class_decorator_hook_2(
        self, fullname: str
    ) -> Callable[[ClassDefContext], bool] | None:
        return _make if fullname == "flax.struct.dataclass" else None


def plugin(version: str) -> type[Plugin]:
    """What mypy looks for."""
    del version
    return FlaxPlugin
