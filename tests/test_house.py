"""The structure that the design promises: no circles of imports, rooms that know only what they should, small files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import ROOT

PACKAGES = ("data_pipeline", "pretraining")
# A room and what it may not import, lazily neither. Rooms are prefixes of module names.
NEVER = [
    ("data_pipeline", "pretraining"),
    ("data_pipeline.common", "data_pipeline.sources"),
    ("data_pipeline.common", "data_pipeline.tokenizers"),
    ("data_pipeline.common", "data_pipeline.shards"),
    ("data_pipeline.common", "data_pipeline.stream"),
    ("pretraining.models", "pretraining.optim"),
    ("pretraining.models", "pretraining.objectives"),
    ("pretraining.models", "pretraining.engines"),
    ("pretraining.models", "pretraining.hub"),
    ("pretraining.models", "data_pipeline.stream"),
    ("pretraining.models", "data_pipeline.shards"),
    ("pretraining.objectives", "pretraining.optim"),
    ("pretraining.objectives", "pretraining.engines"),
    ("pretraining.objectives", "pretraining.run"),
    ("pretraining.objectives", "pretraining.hub"),
    ("pretraining.optim", "pretraining.engines"),
    ("pretraining.optim", "pretraining.objectives"),
    ("pretraining.optim", "pretraining.run"),
    ("pretraining.parallel", "pretraining.optim"),
    ("pretraining.parallel", "pretraining.models"),
    ("pretraining.parallel", "pretraining.engines"),
    ("pretraining.engines", "pretraining.run"),
    ("pretraining.engines", "pretraining.hub"),
    ("pretraining.run", "pretraining.hub"),
    ("pretraining.run", "pretraining.trainer"),
    ("pretraining.run", "pretraining.report"),
    ("pretraining.report", "pretraining.trainer"),
]
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text())
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Every module that this one imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}: a relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & modules().keys()
            found |= submodules or {node.module}
    return frozenset(found)


def is_within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def circles() -> list[list[str]]:
    """Strongly connected modules (Tarjan 1972), those of more than one."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(imports(module) & modules().keys()):
            if other not in index:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == index[module]:
            members = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(members) > 1:
                found.append(sorted(members))

    for module in modules():
        if module not in index:
            visit(module)
    return found


def test_no_circle_of_imports() -> None:
    assert circles() == []


@pytest.mark.parametrize(("room", "other"), NEVER)
def test_a_room_does_not_know(room: str, other: str) -> None:
    found = [f"{m} imports {i}" for m in modules() if is_within(m, room) for i in imports(m) if is_within(i, other)]
    assert found == []


def test_only_engines_and_parallel_know_deepspeed_and_megatron() -> None:
    rooms = ("pretraining.engines", "pretraining.parallel")
    found = [
        f"{m} imports {i}"
        for m in modules()
        if not any(is_within(m, room) for room in rooms)
        for i in imports(m)
        if i.split(".")[0] in ("deepspeed", "megatron")
    ]
    assert found == []


def reachable(module: str) -> set[str]:
    """Modules that are imported with this one, lazy imports left out."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current in seen or current not in modules():
            seen.add(current)
            continue
        seen.add(current)
        waiting += top_level_imports(current)
    return seen


def top_level_imports(module: str) -> list[str]:
    found = []
    for node in modules()[module].body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("module", [m for m in modules() if m.split(".")[-1] in ("config", "registry")])
def test_configs_and_registries_are_free_of_torch(module: str) -> None:
    assert not {m for m in reachable(module) if m.split(".")[0] in ("torch", "deepspeed", "transformers", "wandb")}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def test_files_and_functions_are_small() -> None:
    paths = [p for package in PACKAGES for p in (ROOT / package).rglob("*.py")]
    long = [str(p.relative_to(ROOT)) for p in paths if len(p.read_text().splitlines()) > LONGEST_FILE]
    long += [
        f"{module}.{f.name}"
        for module, tree in modules().items()
        for f in functions(tree)
        if (f.end_lineno or 0) - f.lineno + 1 > LONGEST_FUNCTION
    ]
    assert long == []


def any_parameters(prefixes: tuple[str, ...]) -> tuple[list[str], int]:
    """(parameters whose type is Any alone, how many parameters there are), `self` and `cls` left out."""
    found, total = [], 0
    for module, tree in modules().items():
        if not any(is_within(module, prefix) for prefix in prefixes):
            continue
        for function in functions(tree):
            arguments = function.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            every += [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
            for argument in every:
                if argument.arg in ("self", "cls"):
                    continue
                total += 1
                if argument.annotation is not None and ast.unparse(argument.annotation) == "Any":
                    found.append(f"{module}.{function.name}({argument.arg})")
    return found, total


def test_no_parameter_of_the_core_is_typed_any() -> None:
    core = ("trainer", "train", "build", "engines", "objectives")
    assert any_parameters(tuple(f"pretraining.{room}" for room in core))[0] == []


def test_below_one_percent_of_all_parameters_are_typed_any() -> None:
    found, total = any_parameters(PACKAGES)
    assert len(found) < 0.01 * total, found


def test_no_probing_in_place_of_a_contract() -> None:
    """hasattr and getattr with a fallback hide that nobody wrote down what an object has."""
    found = [
        f"{module}:{node.lineno}"
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and (node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3))
    ]
    assert found == []


if __name__ == "__main__":
    found, total = any_parameters(PACKAGES)
    print(f"circles: {circles()}")
    arrows = [
        (m, i)
        for room, other in NEVER
        for m in modules()
        if is_within(m, room)
        for i in imports(m)
        if is_within(i, other)
    ]
    print(f"arrows that should not be: {len(arrows)} {arrows}")
    print(f"Any: {len(found)} of {total} parameters ({len(found) / total:.1%})")
    comments = code = 0
    for path in (p for package in PACKAGES for p in (ROOT / package).rglob("*.py")):
        for line in Path(path).read_text().splitlines():
            comments += "# " in line and not line.strip().startswith(('"', "'"))
            code += bool(line.strip()) and not line.strip().startswith("#")
    print(f"comments: {100 * comments / code:.1f} per 100 lines of code ({code} lines)")
