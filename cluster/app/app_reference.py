"""Importing an app by name, for `harbor up --app MODULE:NAME`.

Whatever is wrong is told in one line: what was looked for, or what the module raised, and where.
"""

import difflib
import importlib
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from cluster.app.harbor import Harbor
from cluster.config.load import ConfigFaults
from cluster.errors import ConfigError

_REFERENCE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\Z")
_NOT_THE_APPS = (str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"), "<frozen ")
"""Beginnings of the file names of code that an app calls."""


def load_app(reference: str) -> Harbor:
    """Import an app by `module:name`; modules are looked for in the working directory, too, as shards do.

    Raises:
        ConfigFaults: it cannot be, with the reason.
    """
    match = _REFERENCE.match(reference)
    if match is None:
        raise _fault(f"expected MODULE:NAME, as in shop.cache:app, got {reference!r}")
    found: Any = _imported(match[1])
    for part in match[2].split("."):
        if not hasattr(found, part):
            raise _fault(f"there is no {part} in {_named(found)}{_hint(found, part)}")
        found = getattr(found, part)
    if not isinstance(found, Harbor):
        raise _fault(f"expected a Harbor, got a {type(found).__name__}")
    return found


def _fault(reason: str) -> ConfigFaults:
    return ConfigFaults([ConfigError("", reason)])


def _imported(module: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(module)
    except ConfigError as error:
        raise ConfigFaults(getattr(error, "faults", [error])) from error
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise _fault(f"there is no module {error.name}") from error
        said = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
        reason = f"importing {module} raised {type(error).__name__}{': ' if said else ''}{said} ({_where(error)})"
        raise _fault(reason) from error


def _where(error: BaseException) -> str:
    """Return file and line: of a syntax error, else the innermost that is the app's own."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        each for each in frames if not each.filename.startswith(_NOT_THE_APPS) and "site-packages" not in each.filename
    ]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _named(found: Any) -> str:
    return f"the module {found.__name__}" if isinstance(found, ModuleType) else f"the {type(found).__name__}"


def _hint(found: Any, part: str) -> str:
    names = (
        [name for name, value in vars(found).items() if isinstance(value, Harbor)] if hasattr(found, "__dict__") else []
    )
    near = difflib.get_close_matches(part, names, 1) or names[:1]
    return f", did you mean {near[0]}?" if near else ""
