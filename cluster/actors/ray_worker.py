"""The script that a Ray of ours runs as the process of each actor: Ray's own, after what it imports and nobody uses here was put off.

Ray imports `requests`, to ask a cloud about its TPUs, and `jsonschema`, to check runtime environments. With what these import in turn they
are a quarter of all modules that a process has, and take a third of the time in which it starts.

What must not live here: what Ray's workers do.
"""

import runpy
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

SELDOM = ("jsonschema", "requests")


class Later(ModuleType):
    """A module that is loaded when somebody wants something of it. Who imported it before then keeps this one, filled as the other is."""

    def __getattr__(self, name: str) -> Any:
        with _one_at_a_time:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
        loaded = import_module(self.__name__)
        vars(self).update(vars(loaded))
        return getattr(loaded, name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Be sent to other processes by name, as modules are."""
        return import_module, (self.__name__,)


_one_at_a_time = Lock()


def put_off(name: str) -> None:
    """Have a module, if there is one of that name, loaded when it is first used and not when it is imported."""
    if name in sys.modules or (spec := find_spec(name)) is None:
        return
    module = sys.modules[name] = Later(name)
    # What is asked of modules that are not to be used: whether they are there, and (of all of them) where.
    module.__spec__, module.__file__ = spec, spec.origin


if __name__ == "__main__":
    if sys.path[0] == str(Path(__file__).parent):
        del sys.path[0]  # whose modules are not for others to import
    for seldom in SELDOM:
        put_off(seldom)
    runpy.run_module("ray._private.workers.default_worker", run_name="__main__", alter_sys=True)
