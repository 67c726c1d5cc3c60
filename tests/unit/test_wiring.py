"""Nothing in the package is there for nobody: every public function, class and method is used by the package or tools.

Read from the syntax tree. A module-level name counts as used where its own module loads it outside its definition, or
another file imports it from there (a package's __init__ only passes it on), reads it from the module, or names it in a
string by its dotted path. A method counts where its name is read as an attribute outside its own body.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from prime_megatron.cli.main import VERBS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "prime_megatron"
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# What others call by contract, not by name.
CALLED_BY_OTHERS = {
    "prime_megatron.rollout.vllm.worker": "vLLM loads it by the path in its arguments",
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, ast.Module]:
    """Dotted module -> tree, of the package and tools."""
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "tools").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    return {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def definitions(tree: ast.Module) -> Iterator[Definition]:
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node


def loads(node: ast.AST) -> Iterator[str]:
    """Names read below a node, annotations in strings included."""
    for child in ast.walk(node):
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Load):
            yield child.id


def passed_on(trees: dict[str, ast.Module]) -> dict[tuple[str, str], tuple[str, str]]:
    """(package, name) -> (module, name) of what a package's __init__ imports from its modules."""
    packages = {module_of(path) for path in PACKAGE.rglob("__init__.py")}
    return {
        (package, alias.asname or alias.name): (node.module, alias.name)
        for package in packages
        for node in trees[package].body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }


def used_names(trees: dict[str, ast.Module]) -> set[tuple[str, str]]:
    """(module, name) of everything that some file uses."""
    onward = passed_on(trees)
    attributes = {n.attr for tree in trees.values() for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    used: set[tuple[str, str]] = set()
    for module, tree in trees.items():
        aliases: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                aliases |= {alias.asname or alias.name: alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    if whole in trees:
                        aliases[alias.asname or alias.name] = whole
                    elif (module, alias.asname or alias.name) not in onward:
                        used.add((node.module, alias.name))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                head, _, name = node.value.rpartition(".")
                used.add((head, name))
        owned = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                owner = ast.unparse(node.value)
                if owner in aliases:
                    used.add((aliases[owner], node.attr))
                    owned.add(id(node.value))
        # A module that is handed on as a value (a table of verbs, of kernels): what is read from it is not known here.
        values = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in owned}
        for name in values & aliases.keys():
            used |= {(aliases[name], attribute) for attribute in attributes}
        for statement in tree.body:
            own = statement.name if isinstance(statement, Definition) else None
            used |= {(module, name) for name in loads(statement) if name != own}
    # The command line imports a verb's module by its name.
    used |= {(f"prime_megatron.cli.{verb.replace('-', '_')}", "add_parser") for verb in VERBS}
    changed = True
    while changed:
        found = {onward[name] for name in used if name in onward}
        changed = not found <= used
        used |= found
    return used


def unused_definitions(trees: dict[str, ast.Module]) -> list[str]:
    used = used_names(trees)
    return [
        f"{module}.{node.name}"
        for module, tree in sorted(trees.items())
        if module.startswith("prime_megatron") and module not in CALLED_BY_OTHERS
        for node in definitions(tree)
        if (module, node.name) not in used and node.name not in ("main",)
    ]


def unused_methods(trees: dict[str, ast.Module]) -> list[str]:
    read: dict[str, int] = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                read[node.attr] = read.get(node.attr, 0) + 1
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read[node.value] = read.get(node.value, 0) + 1
    found = []
    for module, tree in sorted(trees.items()):
        if not module.startswith("prime_megatron") or module in CALLED_BY_OTHERS:
            continue
        ours = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)} | {"Protocol", "Generic"}
        for owner in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            # Another library's class calls what a subclass overrides.
            if owner.name.startswith("_") or any(ast.unparse(base).split("[")[0] not in ours for base in owner.bases):
                continue
            for method in owner.body:
                if not isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)) or method.name.startswith("_"):
                    continue
                within = sum(isinstance(n, ast.Attribute) and n.attr == method.name for n in ast.walk(method))
                if read.get(method.name, 0) - within <= 0:
                    found.append(f"{module}.{owner.name}.{method.name}")
    return found


def test_every_public_function_and_class_is_used() -> None:
    assert unused_definitions(sources()) == []


def test_every_public_method_is_used() -> None:
    assert unused_methods(sources()) == []


def test_a_caller_taken_away_is_found() -> None:
    trees = sources()
    assert "prime_megatron.trainer.train" not in unused_definitions(trees)
    del trees["prime_megatron.cli.train"]
    assert "prime_megatron.trainer.train" in unused_definitions(trees)
