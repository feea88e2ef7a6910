"""The rules of the house that imports and names show, read from the source.

Each rule is a function of `(module, tree)` that returns its complaints; `BAD` proves
that each of them can fail.
"""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("rlx", "envs", "experiments")
MAX_LINES = 400

# A module may import from its own layer and from those below it. Layers of one level
# that are strangers to each other (methods | data | learner) differ in name only.
LEVELS = {
    "types": 0,
    "files": 0,  # of the standard library alone, as is the next
    "json_values": 0,
    "ops": 1,
    "networks": 2,
    "generation": 3,
    "methods": 4,
    "data": 4,
    "learner": 4,
    "top": 5,  # train, checkpoint, evaluate, record, plot, ...
    "envs": 6,
    "cli": 7,
    "experiments": 7,
}
RLX_PACKAGES = ("ops", "networks", "generation", "methods", "data", "cli")

# Each outside library has one door; nobody else imports it, lazily or not.
DOORS = {
    "brax": ("envs.brax",),
    "craftax": ("envs.craftax",),
    "flax": ("rlx.networks",),
    "h5py": ("rlx.data.dataset_files",),
    "gymnasium": ("envs.mujoco", "envs.gymnasium"),
    "gymnax": ("envs.gymnax",),
    "matplotlib": ("rlx.plot",),
    "mujoco": ("envs.mujoco",),
    "mujoco_playground": ("envs.playground",),
    "orbax": ("rlx.checkpoint",),
    "safetensors": ("rlx.networks.pretrained",),
    "tensorboardX": ("rlx.record",),
    "tokenizers": ("rlx.data.tokenizer",),
    "wandb": ("rlx.record",),
}
# Records of arrays are flax dataclasses everywhere: the module `struct` is no door.
OPEN = {"flax.struct"}
ORACLES = {"distrax", "pytest", "rlax", "rliable", "scipy", "torch", "transformers"}
FORBIDDEN_NAMES = {"obs", "rng", "ts", "mb", "done", "dones"}
FORBIDDEN_CALLS = {"PRNGKey": "jax.random.key", "pmap": "vmap or shard_map"}

Rule = Callable[[str, ast.Module], Iterator[str]]


def layer(module: str) -> str:
    """The layer that a module of this project belongs to."""
    package, *rest = module.split(".")
    if package != "rlx":
        return package
    if not rest:
        return "types"  # rlx/__init__.py: may import nothing
    if rest[0] in LEVELS:
        return rest[0]
    return "top"


def imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """All modules that a tree imports, wherever the statement stands, with lines.

    `from a import b` yields `a.b`: b may be a module, and a rule on `a` covers it.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (
                (f"{node.module}.{alias.name}", node.lineno) for alias in node.names
            )


def under(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def points_down(module: str, tree: ast.Module) -> Iterator[str]:
    """Imports of the project's own modules go down, or stay in their layer."""
    here = layer(module)
    for target, line in imported(tree):
        if target.split(".")[0] not in PACKAGES:
            continue
        there = layer(target)
        if there != here and LEVELS[there] >= LEVELS[here]:
            yield f"line {line}: {module} ({here}) imports {target} ({there})"


def absolute(module: str, tree: ast.Module) -> Iterator[str]:
    """No relative imports: every line says where a thing comes from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"line {node.lineno}: {module} has a relative import"


def methods_are_strangers(module: str, tree: ast.Module) -> Iterator[str]:
    """A method imports no method; private files of the folder are shared parts."""
    if not under(module, "rlx.methods"):
        return
    for target, line in imported(tree):
        if under(target, "rlx.methods") and not target.split(".")[2].startswith("_"):
            yield f"line {line}: the method {module} imports {target}"


def one_door(module: str, tree: ast.Module) -> Iterator[str]:
    """An outside library is imported by its door alone, an oracle by tests alone."""
    if layer(module) == "experiments":
        return
    for target, line in imported(tree):
        library = target.split(".")[0]
        if library in ORACLES:
            yield f"line {line}: {module} imports {target}, which only tests may"
        if library not in DOORS or any(under(target, name) for name in OPEN):
            continue
        if not any(under(module, door) for door in DOORS[library]):
            yield f"line {line}: {module} imports {target}; door: {DOORS[library]}"


def no_old_jax(module: str, tree: ast.Module) -> Iterator[str]:
    """Typed keys only, and no pmap."""
    for node in ast.walk(tree):
        name = getattr(node, "attr", getattr(node, "id", None))
        if isinstance(node, ast.alias):
            name = node.name.rpartition(".")[2]
        if isinstance(node, ast.Attribute | ast.Name | ast.alias) and (
            name in FORBIDDEN_CALLS
        ):
            yield f"line {node.lineno}: {module} has {name}: {FORBIDDEN_CALLS[name]}"


def house_words(module: str, tree: ast.Module) -> Iterator[str]:
    """No parameter, variable or field has a name that the house does not use.

    Reading another library's `state.done` is allowed: attributes are not checked.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        else:
            continue
        if name in FORBIDDEN_NAMES:
            yield f"line {node.lineno}: {module} calls something {name!r}"


def short(module: str, tree: ast.Module) -> Iterator[str]:
    """A module has at most 400 lines."""
    last = max((getattr(node, "end_lineno", 0) for node in ast.walk(tree)), default=0)
    if last > MAX_LINES:
        yield f"{module} has {last} lines: split it (at most {MAX_LINES})"


def annotated(module: str, tree: ast.Module) -> Iterator[str]:
    """Public functions and methods state the types of all they take and return."""
    if layer(module) == "experiments":
        return
    bodies = [tree.body]
    bodies += [
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    for node in (node for body in bodies for node in body):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        given = node.args
        parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        parameters += [extra for extra in (given.vararg, given.kwarg) if extra]
        bare = [
            parameter.arg
            for parameter in parameters
            if parameter.annotation is None and parameter.arg not in ("self", "cls")
        ]
        if bare or node.returns is None:
            missing = ", ".join(bare + (["what it returns"] * (node.returns is None)))
            yield f"line {node.lineno}: {module}.{node.name} lacks types: {missing}"


RULES: list[Rule] = [
    points_down,
    absolute,
    methods_are_strangers,
    one_door,
    no_old_jax,
    house_words,
    short,
    annotated,
]


def modules() -> dict[str, pathlib.Path]:
    """Every module of the project, by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = path
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule) -> None:
    complaints = [
        f"{path.relative_to(ROOT)}: {complaint}"
        for name, path in modules().items()
        for complaint in rule(name, ast.parse(path.read_text()))
    ]
    assert not complaints, "\n".join(complaints)


def test_every_folder_of_rlx_has_a_layer() -> None:
    folders = {
        path.name
        for path in (ROOT / "rlx").iterdir()
        if path.is_dir() and list(path.glob("*.py"))
    }
    assert folders <= set(RLX_PACKAGES), (
        f"give {folders - set(RLX_PACKAGES)} a layer in tests/test_layers.py"
    )


def test_no_circular_imports() -> None:
    """Nothing imports, however far around, what imports it at its top level."""
    known = {name: path for name, path in modules().items()}
    graph = {}
    for name, path in known.items():
        tree = ast.parse(path.read_text())
        top = ast.Module([n for n in tree.body if isinstance(n, _IMPORTS)], [])
        targets = {target for target, _ in imported(top)}
        targets |= {target.rpartition(".")[0] for target in targets}
        graph[name] = {target for target in targets if target in known} - {name}
    assert find_cycle(graph) == []


_IMPORTS = (ast.Import, ast.ImportFrom)


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Some cycle of a directed graph, or an empty list."""
    finished: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return []
        for target in sorted(graph.get(node, ())):
            if cycle := visit(target, [*path, node]):
                return cycle
        finished.add(node)
        return []

    for node in sorted(graph):
        if cycle := visit(node, []):
            return cycle
    return []


BAD = [
    (points_down, "rlx.ops.returns", "from rlx.networks import mlp"),
    (points_down, "rlx.types", "import rlx.ops"),
    (points_down, "rlx.learner", "from rlx import train"),
    (points_down, "rlx.learner", "from rlx.methods import ppo"),
    (points_down, "rlx.data.rollout", "from rlx.learner import update"),
    (points_down, "rlx.methods.ppo", "from rlx.data import rollout"),
    (points_down, "rlx.train", "def f():\n    import envs"),
    (points_down, "rlx.train", "from rlx import cli"),
    (points_down, "envs.probe", "from rlx.cli import main"),
    (points_down, "envs.probe", "from experiments import mdpo"),
    (methods_are_strangers, "rlx.methods.mdpo", "from rlx.methods import ppo"),
    (methods_are_strangers, "rlx.methods.mdpo", "from rlx.methods.ppo import loss"),
    (absolute, "rlx.methods.mdpo", "from . import ppo"),
    (one_door, "rlx.train", "import orbax.checkpoint as ocp"),
    (one_door, "rlx.methods.ppo", "from flax import linen"),
    (one_door, "rlx.record", "def f():\n    import matplotlib.pyplot as plt"),
    (one_door, "envs.probe", "import gymnasium"),
    (one_door, "rlx.ops.statistics", "from scipy import stats"),
    (no_old_jax, "rlx.train", "key = jax.random.PRNGKey(0)"),
    (no_old_jax, "rlx.train", "from jax import pmap"),
    (no_old_jax, "rlx.train", "jax.pmap(f)"),
    (house_words, "rlx.train", "def f(obs): ..."),
    (house_words, "rlx.train", "def f(*, rng): ..."),
    (house_words, "rlx.train", "lambda done: 0"),
    (house_words, "rlx.train", "for obs in range(3): ..."),
    (house_words, "rlx.train", "class A:\n    done: int"),
    (short, "rlx.train", "x = 1\n" * 401),
    (annotated, "rlx.train", "def f(x) -> int: ..."),
    (annotated, "rlx.train", "def f(x: int): ..."),
    (annotated, "rlx.train", "def f(*xs) -> None: ..."),
    (annotated, "rlx.train", "class A:\n    def f(self, x) -> None: ..."),
]
GOOD = [
    (points_down, "rlx.cli", "import envs\nfrom rlx import train"),
    (points_down, "rlx.ops.values", "from rlx.ops import returns\nimport jax"),
    (points_down, "envs.probe", "from rlx.types import Env"),
    (methods_are_strangers, "rlx.methods.ppo", "from rlx.methods import _shared"),
    (one_door, "rlx.data.rollout", "from flax import struct"),
    (one_door, "rlx.networks.mlp", "import flax.linen as nn"),
    (one_door, "envs.mujoco.native", "import mujoco.rollout"),
    (no_old_jax, "rlx.train", "jax.random.key(0)"),
    (house_words, "envs.brax", "step = f(state.obs, state.done, rng=key)"),
    (short, "rlx.train", "x = 1\n" * 400),
    (annotated, "rlx.train", "def _f(x): ..."),
    (annotated, "rlx.train", "def f(x: int) -> None:\n    def g(y): ..."),
    (annotated, "rlx.train", "class A:\n    def f(self) -> None: ..."),
]


@pytest.mark.parametrize(("rule", "module", "source"), BAD)
def test_rule_sees_a_fault(rule: Rule, module: str, source: str) -> None:
    assert list(rule(module, ast.parse(source)))


@pytest.mark.parametrize(("rule", "module", "source"), GOOD)
def test_rule_lets_good_code_pass(rule: Rule, module: str, source: str) -> None:
    assert not list(rule(module, ast.parse(source)))


def test_cycles_are_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def loaded_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*(name for name in sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert output.returncode == 0, output.stderr
    return {name.partition(".")[0] for name in output.stdout.split()}


def test_importing_rlx_imports_nothing_else() -> None:
    loaded = loaded_after("import rlx")
    assert not loaded & {"jax", "numpy", *DOORS}


def test_importing_the_library_loads_no_heavy_library() -> None:
    library = [
        name
        for name in modules()
        if name.startswith("rlx.") and not under(name, "rlx.cli")
    ]
    names = ", ".join(name for name in library)
    loaded = loaded_after(f"import {names}, envs")
    assert "jax" in loaded
    assert not loaded & (set(DOORS) - {"flax"})
