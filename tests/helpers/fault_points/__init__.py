"""Named fault points in real processes, without a line of production code for them.

`site/` stands first on PYTHONPATH of `overnight up`, and so of everything below it: its `sitecustomize.py` wraps, in
each process by its role, every step that touches the disk or another process. A test arms a point by
`FaultPoints.arm`; the process that comes to it for the k-th time ends or stops itself there.
"""

from helpers.fault_points.control import SIGNALS, FaultPoints, Passed, Struck

__all__ = ["SIGNALS", "FaultPoints", "Passed", "Struck"]
