"""A file system in user space that fails any call of any process on purpose, and knows what a power cut would leave.

    wire.py        the kernel's protocol (FUSE 7.31) as structs
    mounting.py    mount, unmount, abort
    tree.py        inodes, passed through to a folder that lies below (the backing)
    durability.py  what the disk is certain to hold, and images of what it might
    rules.py       which call fails, and how
    server.py      the loop: one request after the other, in one process of one thread
    client.py      `FaultFs`: what tests use

Needs root and /dev/fuse. Writes reach the server as they are made (no write-back cache); a shared mapping, such as
SQLite's -shm, is written whenever the kernel likes, by nobody (pid 0): rules pass it over unless they name it.
"""

from helpers.fault_fs.client import FaultFs
from helpers.fault_fs.mounting import why_not
from helpers.fault_fs.rules import CHANGES, Call, Rule

__all__ = ["CHANGES", "Call", "FaultFs", "Rule", "why_not"]
