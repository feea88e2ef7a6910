"""An experiment as a command line states it, and as a run folder keeps it."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import envs
from rlx import loop
from rlx.cli import catalogue, fields
from rlx.cli.errors import UsageError, nearest
from rlx.json_values import to_json
from rlx.record import RunFolder
from rlx.types import DataSource, Env, Method

LIMIT = 1_000
"""Steps after which an evaluation stops where the environment itself never does."""


class Parts(NamedTuple):
    """What an experiment is made of."""

    env: Env
    """The environment of evaluations and films: its spec always names a time limit."""
    source: DataSource
    make_method: Callable[[Mapping[str, Any]], Method]
    """From hyper-parameters (name to number or traced scalar) to the method."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that decides the numbers of a run."""

    method: str
    config: Any
    env: str
    env_options: Mapping[str, Any]
    source: str | None
    """None in a folder that Python made, which can be evaluated, not resumed."""
    source_options: Mapping[str, Any]
    steps: int
    seeds: tuple[int, ...]
    grid: Mapping[str, tuple[float, ...]]
    evaluations: int
    episodes: int

    def build(self) -> Parts:
        """Make the environment, the data source and the method.

        Raises:
          UsageError: a value that the environment, source or method does not take.
        """
        module = catalogue.load_method(self.method)
        try:
            env = envs.make(self.env, **self.env_options)
            source = DataSource(_refuse, _refuse, env=env)
            if self.source is not None:
                maker = catalogue.load_source(self.source)
                source = maker(env, **self.source_options)

            def make_method(hyper: Mapping[str, Any]) -> Method:
                config = dataclasses.replace(self.config, **hyper)
                return module.make(env.spec, config)

            make_method({})  # complain now, not in the middle of a compilation
            if self.steps and self.source is not None:
                loop.iterations_for(source, self.steps)
        except (TypeError, ValueError) as error:
            raise UsageError(str(error)) from error
        limit = env.spec.time_limit or LIMIT
        spec = dataclasses.replace(env.spec, time_limit=limit)
        return Parts(env._replace(spec=spec), source, make_method)

    @property
    def hyper(self) -> dict[str, list[float]] | None:
        """All settings of the grid, `[K]` values per name; None without a grid."""
        if not self.grid:
            return None
        settings = list(itertools.product(*self.grid.values()))
        columns = zip(*settings, strict=True)
        return dict(zip(self.grid, map(list, columns), strict=True))

    def to_config(self) -> dict[str, Any]:
        """Return what a run folder keeps."""
        return {"experiment": to_json(self)}


def from_folder(folder: RunFolder) -> Experiment:
    """Return the experiment that a run folder keeps.

    Raises:
      UsageError: made from Python, or by another version of the method.
    """
    kept = folder.config().get("experiment")
    if not isinstance(kept, Mapping):
        path = folder.path
        raise UsageError(
            f"{path}: was made from Python and does not say of what: evaluate it there "
            f"by rlx.saved.load('{path}', method).evaluate(env), "
            "or train with Settings(recipe=train.Recipe(method=..., env=...))"
        )
    module = catalogue.load_method(kept["method"])
    config = fields.from_json(module.Config, kept["config"], str(folder.path))
    grid = {name: tuple(values) for name, values in kept["grid"].items()}
    plain = {
        name: fields.tuples(value)
        for name, value in kept.items()
        if name not in ("config", "grid")
    }
    return Experiment(**plain, config=config, grid=grid)


def _refuse(*_: Any) -> Any:
    raise UsageError("was made from Python, which alone knows its data source")


def from_arguments(arguments: Any) -> Experiment:
    """Return the experiment that `rlx train` or `rlx sweep` was asked for.

    Raises:
      UsageError: an unknown name or an impossible value.
    """
    module = catalogue.load_method(arguments.method)
    config = fields.set_values(module.Config(), arguments.set, arguments.method)
    source = arguments.source or catalogue.source_name(module)
    found = Experiment(
        method=arguments.method,
        config=config,
        env=arguments.env,
        env_options=_literals(arguments.env_set),
        source=source,
        source_options=source_values(source, config, arguments.source_set),
        steps=arguments.steps,
        seeds=arguments.seeds,
        grid=_grid(arguments.method, config, arguments.grid),
        evaluations=arguments.evaluations,
        episodes=arguments.episodes,
    )
    return _with_schedule(found, set(fields.split(arguments.set)))


def _with_schedule(experiment: Experiment, given: set[str]) -> Experiment:
    """Fill in `anneal_steps`, unless given: schedules last as long as the run."""
    if not hasattr(experiment.config, "anneal_steps") or "anneal_steps" in given:
        return experiment
    parts = experiment.build()
    steps = loop.gradient_steps(experiment.config, parts.source, experiment.steps)
    config = dataclasses.replace(experiment.config, anneal_steps=steps)
    return dataclasses.replace(experiment, config=config)


def _literals(assignments: Sequence[str]) -> dict[str, Any]:
    return {n: fields.literal(text) for n, text in fields.split(assignments).items()}


def source_options(maker: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the options of a data source: all parameters after the environment."""
    return dict(list(inspect.signature(maker).parameters.items())[1:])


def source_values(name: str, config: Any, assignments: Sequence[str]) -> dict[str, Any]:
    """Return every option of a data source.

    What is not given comes from the method's field of the same name, such as
    `num_minibatches`, so that the two agree; else from the source's own default.
    """
    maker = catalogue.load_source(name)
    known, hints = source_options(maker), typing.get_type_hints(maker)
    found = {
        option: getattr(config, option, parameter.default)
        for option, parameter in known.items()
        if parameter.default is not parameter.empty
    }
    for option, text in fields.split(assignments).items():
        if option not in known:
            raise UsageError(
                f"the data source {name} has no option {option!r}"
                f"{nearest(option, known)} there are {', '.join(known)}"
            )
        kind = hints.get(option, object)
        found[option] = fields.convert(text, kind, f"{name}'s {option}")
    return found


def _grid(
    method: str, config: Any, assignments: Sequence[str]
) -> dict[str, tuple[float, ...]]:
    hints = typing.get_type_hints(type(config))
    found = {}
    for name, text in fields.split(assignments).items():
        if name not in hints:
            raise UsageError(f"{method} has no field {name!r}{nearest(name, hints)}")
        if hints[name] is not float:
            raise UsageError(
                f"{name} is no number that one compiled program can vary: sweep over "
                f"{', '.join(n for n, kind in hints.items() if kind is float)}, and "
                f"use `rlx train` once per {name}"
            )
        values = [part for part in text.split(",") if part.strip()]
        numbers = [
            fields.convert(part, float, f"the grid of {name}") for part in values
        ]
        if not numbers or len(set(numbers)) != len(numbers):
            raise UsageError(f"the grid of {name} needs distinct values, got {text!r}")
        found[name] = tuple(numbers)
    return found
