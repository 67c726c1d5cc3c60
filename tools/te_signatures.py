"""What Transformer Engine's layers take and hold, read from its source without importing it.

    pip download --no-deps transformer-engine==VERSION -d /tmp/te     VERSION as in tools/engine_env/locks
    python tools/te_signatures.py /tmp/te/transformer_engine-*.whl

Writes tests/support/te_signatures.json: the parameters of the constructors and forwards that megatron-core calls, the
parameters (weights) that a constructor registers, and the names that its modules hold. Tests build models on a CPU from
stand-ins with these signatures (tests/support/te_stand_in.py), and fail where the locks name another version.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[1] / "tests" / "support" / "te_signatures.json"
PACKAGE = "transformer_engine/pytorch/"
_ATTENTION = "attention/dot_product_attention/dot_product_attention.py"
CLASSES = {
    "Linear": [("module/linear.py", "Linear")],
    "LayerNormLinear": [("module/layernorm_linear.py", "LayerNormLinear")],
    "GroupedLinear": [("module/grouped_linear.py", "GroupedLinear")],
    "RMSNorm": [("module/rmsnorm.py", "RMSNorm"), ("ops/basic/rmsnorm.py", "RMSNorm"), ("ops/op.py", "BasicOperation")],
    "DotProductAttention": [(_ATTENTION, "DotProductAttention")],
}
"""Class -> itself and what it inherits from, as (file, class)."""
FUNCTIONS = {"get_cpu_offload_context": "cpu_offload.py", "general_gemm": "cpp_extensions/gemm.py"}
"""Function that megatron-core calls when it builds or runs a model -> file."""
MODULES = (
    "", "attention", "attention.rope", "cpp_extensions", "cpu_offload", "cpu_offload_v1", "cross_entropy",
    "distributed", "float8_tensor", "fp8", "module.base", "ops", "optimizers", "permutation", "router", "tensor",
    "utils",
)  # fmt: skip
"""Modules of transformer_engine.pytorch from which megatron-core takes names when it is imported."""


class SourceError(Exception):
    """The source is not what this reads."""


def _parameters(function: ast.FunctionDef) -> dict[str, Any]:
    """Name -> whether it must be given, without self; open: it takes any other keyword, too."""
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args]
    required = len(plain) - len(arguments.defaults)
    named = {one.arg: index < required for index, one in enumerate(plain)}
    named |= {
        one.arg: default is None for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    }
    named.pop("self", None)
    return {"parameters": named, "open": arguments.kwarg is not None}


def _registered(init: ast.FunctionDef) -> Iterator[str]:
    """Names of the weights that a constructor registers, {} for a number; of lists of names the undivided one."""
    lists: dict[str, list[str]] = {}
    for node in ast.walk(init):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Attribute)
            and isinstance(node.value, ast.List)
        ):
            names = [
                one.value for one in node.value.elts if isinstance(one, ast.Constant) and isinstance(one.value, str)
            ]
            lists.setdefault(node.targets[0].attr, []).extend(names)
    for node in ast.walk(init):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr != "register_parameter":
            continue
        name = node.args[0]
        if isinstance(name, ast.Constant):
            yield str(name.value)
        elif isinstance(name, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in name.values)
        elif isinstance(name, ast.Subscript) and isinstance(name.value, ast.Attribute):
            yield from lists[name.value.attr]
        else:
            raise SourceError(f"line {node.lineno}: a weight's name of an unknown form")


def _function(body: list[ast.stmt], name: str) -> ast.FunctionDef:
    return next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == name)


def read_class(trees: dict[str, ast.Module], places: list[tuple[str, str]]) -> dict[str, Any]:
    """Constructor, forward and weights of a class."""
    found: dict[str, Any] = {"weights": []}
    for path, name in places:
        body = next(node.body for node in trees[path].body if isinstance(node, ast.ClassDef) and node.name == name)
        for key, method in (("init", "__init__"), ("forward", "forward")):
            with contextlib.suppress(StopIteration):  # it inherits this one
                found.setdefault(key, _parameters(_function(body, method)))
        found["weights"] += sorted(set(_registered(_function(body, "__init__"))))
    return found


def names_of(trees: dict[str, ast.Module], path: str) -> list[str]:
    """What a module holds at its top level: what it defines, imports and assigns."""
    found: set[str] = set()
    for node in trees[path].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom) and node.names[0].name == "*" and node.level == 0:
            continue  # of the compiled part
        elif isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            folder = Path(path).parent / str(node.module).replace(".", "/")
            inner = next(
                str(place) for place in (folder.with_suffix(".py"), folder / "__init__.py") if str(place) in trees
            )
            found |= set(names_of(trees, inner))
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {(one.asname or one.name).split(".")[0] for one in node.names}
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return sorted(found - {"annotations"})


def read_wheel(path: Path) -> dict[str, Any]:
    """The table of one release. Raises SourceError: a module is not there."""
    with zipfile.ZipFile(path) as wheel:
        trees = {
            name.removeprefix(PACKAGE): ast.parse(wheel.read(name))
            for name in wheel.namelist()
            if name.startswith(PACKAGE) and name.endswith(".py")
        }
    modules = {}
    for module in MODULES:
        places = [f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py".lstrip("/")]
        path_in = next((place for place in places if place in trees), None)
        if path_in is not None:
            modules[module] = names_of(trees, path_in)
    return {
        "version": path.name.split("-")[1],
        "classes": {name: read_class(trees, places) for name, places in CLASSES.items()},
        "functions": {name: _parameters(_function(trees[path].body, name)) for name, path in FUNCTIONS.items()},
        "modules": modules,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("wheel", type=Path)
    try:
        table = read_wheel(parser.parse_args().wheel)
    except (OSError, zipfile.BadZipFile, SourceError, StopIteration, KeyError) as error:
        print(f"error: no release of Transformer Engine that this reads: {error!r}", file=sys.stderr)
        return 2
    TARGET.write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
