"""Module stand-ins whose names resolve at import and raise at use: for packages that have no CPU build."""

import importlib.abc
import importlib.machinery
import sys
import types


class Absent:
    """A function or an object of an absent package: its attributes are absent too, a call raises RuntimeError."""

    def __init__(self, name: str) -> None:
        self.__name__ = self.__qualname__ = name

    def __getattr__(self, name: str) -> "Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        value = Absent(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value

    def __call__(self, *args: object, **kwargs: object) -> None:
        package = self.__name__.split(".")[0]
        raise RuntimeError(f"{self.__name__} was called, but {package} is only an import stand-in on this CPU")


def _absent(module: str, name: str) -> object:
    """A class for a capitalised name (they are subclassed and annotated with), else an Absent."""
    value = Absent(f"{module}.{name}")
    if not name[:1].isupper():
        return value
    return type(name, (), {"__module__": module, "__init__": lambda self, *args, **kwargs: value()})


def resolve_names_in(module: types.ModuleType) -> None:
    """Give `module` a `__getattr__` that answers every public name, the same object each time."""

    def answer(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        value = _absent(module.__name__, name)
        setattr(module, name, value)
        return value

    module.__getattr__ = answer


class _Submodules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Every dotted name below one package is again a stand-in."""

    def __init__(self, package: str) -> None:
        self.prefix = package + "."

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(self.prefix):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def exec_module(self, module: types.ModuleType) -> None:
        resolve_names_in(module)


def stand_in(package: str) -> None:
    """Make `package` (being imported now) and every module below it a stand-in. Real submodules win."""
    resolve_names_in(sys.modules[package])
    sys.meta_path.append(_Submodules(package))
