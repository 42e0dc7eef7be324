"""`ray start` as Ray has it, but for the script that it runs as the process of each actor (`ray_worker`), for which Ray has no option."""

from functools import partialmethod
from pathlib import Path

from ray._private.parameter import RayParams

OURS = partialmethod(RayParams.__init__, worker_path=str(Path(__file__).parent / "ray_worker.py"))
"""In place of `RayParams.__init__` where a node is started."""

if __name__ == "__main__":
    from ray.scripts.scripts import main

    setattr(RayParams, "__init__", OURS)  # noqa: B010 - its type is another
    main()  # type: ignore[no-untyped-call]
