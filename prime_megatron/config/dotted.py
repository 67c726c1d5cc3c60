"""`package.module:name` in a config: the object that it names, or one line that says what is wrong.

The one resolver of such keys. Modules are looked for where Python looks (installed packages, PYTHONPATH), and then in
the working directory.
"""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from prime_megatron.errors import InputError

_FORM = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
_NAMES_SHOWN = 12


def split(path: str, key: str) -> tuple[str, str]:
    """(module, name) of "package.module:name"; nothing is imported.

    Args:
        path: the config's value.
        key: the config's key, for the error.

    Raises:
        InputError: it has another form.
    """
    found = _FORM.fullmatch(path)
    if found is None:
        raise InputError(f"{key}: {path!r} is not of the form package.module:name, such as my_rewards:score")
    return found["module"], found["name"]


def resolve(path: str, key: str) -> Callable[..., Any]:
    """The function or class that "package.module:name" names; imports the module. Arguments as `split`.

    Raises:
        InputError: another form; no such module, with those that there are; a module that fails while it is imported;
            no such name in it, or one that cannot be called.
    """
    module_name, name = split(path, key)
    module = _import(module_name, key)
    found = getattr(module, name, None)
    if callable(found):
        return found
    where = f"{module_name} ({getattr(module, '__file__', None) or 'built in'})"
    if found is not None:
        raise InputError(f"{key}: {name!r} in {where} is a {type(found).__name__}; name something that can be called")
    offered = [each for each, value in vars(module).items() if not each.startswith("_") and callable(value)]
    raise InputError(f"{key}: {where} has no {name!r}; {_offer(name, offered, 'it has')}")


def _import(name: str, key: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # last, so that a file here stands in front of no installed package
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise InputError(f"{key}: {name} imports {error.name!r}, which is not installed here") from None
        parent, _, missing = error.name.rpartition(".")
        raise InputError(f"{key}: no module {error.name!r}; {_offer(missing, *_modules(parent, here))}") from None
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            f"{key}: {name} fails while it is imported: {reason} ({frame.filename}:{frame.lineno})"
        ) from None


def _modules(parent: str, here: str) -> tuple[list[str], str]:
    """The modules in a package, or in the working directory, and what to call them."""
    if not parent:
        found = [module.name for module in pkgutil.iter_modules([here])]
        return found, f"the working directory {here} has (PYTHONPATH adds other folders)"
    package = sys.modules[parent]
    if not hasattr(package, "__path__"):
        return [], f"{parent} is a module and not a package: it has"
    return [module.name for module in pkgutil.iter_modules(package.__path__)], f"package {parent} has"


def _offer(wanted: str, names: Iterable[str], what: str) -> str:
    """What there is in place of a name that is not, the closest first."""
    known = sorted(names)
    close = difflib.get_close_matches(wanted, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    shown = ", ".join(known[:_NAMES_SHOWN]) + (", ..." if len(known) > _NAMES_SHOWN else "")
    return f"{hint}{what}: {shown or 'nothing'}"
