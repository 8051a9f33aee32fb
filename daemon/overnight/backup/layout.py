"""What a backup holds, and which names may be in it.

A tar archive (pax), written and read as a stream:

    overnight-backup/about.json          whose it is: versions, schema, when, of which home, which models were there
    var/queue.db                         the queue, from one consistent view
    etc/... grids/... var/results/...    files, folders and links; with --models and --logs var/models and var/log
    overnight-backup/sums-000001.jsonl   name, bytes and SHA-256 of the members before it, after every thousand
    overnight-backup/end.json            how many there are, and what was left out; nothing follows it

What comes again replaces what came before: the queue, and the folders of cells that changed while they were copied.
"""

from __future__ import annotations

import hashlib
import posixpath
from typing import Any

from overnight.durable import ODD_NAMES, canonical
from overnight.errors import UserError
from overnight.paths import SECRETS

VERSION = 1
META = "overnight-backup/"
ABOUT, END = META + "about.json", META + "end.json"
QUEUE = "var/queue.db"
RESULTS = "var/results"
SUMS_EVERY = 1000
META_BYTES = 1 << 26
"""No file of ours in there is larger: a thousand names of at most 4 KiB, six bytes for each that is no ASCII."""

STAGING = ".overnight-restore-"
"""And a pid: where a restore unpacks, in the home."""

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz")

_ROOTS = ("etc", "grids", RESULTS, "var/models", "var/log")


class BadBackup(UserError):
    """This file is no backup, or a damaged or a hostile one."""


def holds_secrets(name: str) -> bool:
    """In no backup: `etc/secrets.env`, and what editors leave beside it (`secrets.env~`, `.secrets.env.swp`, ...)."""
    return name.startswith("etc/") and SECRETS in posixpath.basename(name)


def end_sha256(end: dict[str, Any]) -> str:
    """Of the last member, which no sums follow: SHA-256 of its canonical JSON without the field `sha256`."""
    return hashlib.sha256(
        canonical({name: end[name] for name in end if name != "sha256"}).encode(errors=ODD_NAMES)
    ).hexdigest()


def sums_name(number: int) -> str:
    return f"{META}sums-{number:06}.jsonl"


def suffix(name: str) -> str:
    """How a file of this name is packed. Raises UserError."""
    found = next((known for known in SUFFIXES if name.endswith(known) and name != known), None)
    if found is None:
        raise UserError(f"{name}: a name that ends with {', '.join(SUFFIXES)} is expected, or - for standard output")
    return found


def check_name(name: str) -> None:
    """Raises BadBackup for a name that is not below one of the folders that a backup brings."""
    parts = name.split("/")
    if name != posixpath.normpath(name) or "\0" in name or ".." in parts or name.startswith("/"):
        raise BadBackup(f"holds {name!r}, which would leave the home: nothing was taken from it")
    if name != QUEUE and not any(name == root or name.startswith(f"{root}/") for root in _ROOTS):
        raise BadBackup(f"holds {name!r}, which no backup brings: nothing was taken from it")


def cell_folder(name: str) -> str | None:
    """The folder of the cell (or of its old results in `.aside/TIME/`) that `name` is inside of, or is."""
    parts = name.split("/")
    if parts[:2] != ["var", "results"]:
        return None
    deep = 6 if len(parts) > 3 and parts[3] == ".aside" else 4
    return "/".join(parts[:deep]) if len(parts) >= deep else None


def link_inside(name: str, target: str) -> bool:
    """Does a link of this name with this target stay in the folder of its cell?"""
    folder = cell_folder(name)
    if folder is None or name == folder or target.startswith("/") or "\0" in target or not target:
        return False
    inward = target.split("/")
    while inward and inward[0] in ("..", "."):
        inward.pop(0)
    if ".." in inward:
        return False  # behind another link, `..` leads elsewhere than it reads
    reached = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    return reached.startswith(f"{folder}/")
