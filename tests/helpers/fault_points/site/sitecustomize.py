"""Run by every Python process that has this folder on its path: a look at one variable, unless it is set for tests."""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - every process pays for what is imported


def _next() -> None:
    """The sitecustomize that this one stands before, if there is one."""
    from importlib.machinery import PathFinder

    others = [entry for entry in sys.path if os.path.abspath(entry) != _HERE]  # noqa: PTH100 - see above
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        from importlib.util import module_from_spec

        spec.loader.exec_module(module_from_spec(spec))


if os.environ.get("OVERNIGHT_FAULT_POINTS"):
    from overnight_fault_points import hooks

    hooks.install()
_next()
