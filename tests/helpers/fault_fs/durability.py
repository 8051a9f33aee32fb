"""What the disk is certain to hold, and images of what it might hold after a power cut.

Data. An fsync (fdatasync is the same here, size included) makes all bytes of a file durable. Each write and truncate
since may have arrived, or not, or in part (whole sectors of 512 bytes), in any order; where a file grew without its
bytes there are zeros or rubbish. After an fsync that failed, what was pending is lost to the disk for good, although
every reader still sees it: the kernel has marked those pages clean.

Names (create, mkdir, rename, unlink, rmdir, symlink) go into a journal, in order. An fsync of a folder commits it up to
the last change in that folder; one of a file up to the last change of that file's own name. So a file that was made and
fsynced has its name: ext4, XFS and btrfs all do this, and XFS does no more. What follows in the journal may be there up
to any point. With `strict` nothing but POSIX counts: only an fsync of a folder makes its names durable, those alone,
and folders know no order among each other.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from helpers.fault_fs.tree import Inode, Tree

SECTOR_BYTES = 512


@dataclass
class Change:
    """To a file's data, not synced. data None: a truncate to `offset`. lost: a sync of it has failed."""

    offset: int
    data: bytes | None
    lost: bool = False

    def apply(self, to: bytearray) -> None:
        if self.data is None:
            del to[self.offset :]
            to.extend(bytes(self.offset - len(to)))
            return
        to.extend(bytes(max(0, self.offset - len(to))))
        to[self.offset : self.offset + len(self.data)] = self.data


@dataclass(frozen=True)
class NameChange:
    """steps: (folder, name, who is there from now on). about: the inode that is made, moved or removed."""

    steps: tuple[tuple[Inode, str, Inode | None], ...]
    about: Inode

    @property
    def folders(self) -> set[int]:
        return {id(folder) for folder, _, _ in self.steps}

    def apply(self, to: Callable[[Inode], dict[str, Inode]]) -> None:
        for folder, name, inode in self.steps:
            if inode is None:
                to(folder).pop(name, None)
            else:
                to(folder)[name] = inode


class Durability:
    """Told of every change that was applied to the backing folder, right before (data) or after (names) it was."""

    def __init__(self, tree: Tree, *, strict: bool) -> None:
        self._tree, self._strict = tree, strict
        self._journal: list[NameChange] = []

    # -- what happens -----------------------------------------------------------------------------------------

    def data_changes(self, inode: Inode, offset: int, data: bytes | None) -> None:
        """Before a write of `data`, or a truncate to `offset`."""
        if inode.sure is None:
            inode.sure = bytearray(inode.data())
        inode.pending.append(Change(offset, data))

    def names_changed(self, about: Inode, *steps: tuple[Inode, str, Inode | None]) -> None:
        self._journal.append(NameChange(steps, about))

    def created(self, inode: Inode) -> None:
        """A new, empty file: nothing of it is durable."""
        inode.sure = bytearray()

    def synced(self, inode: Inode) -> None:
        if inode.is_file and inode.pending:
            assert inode.sure is not None
            for change in _changes(inode):
                if not change.lost:
                    change.apply(inode.sure)
            inode.pending.clear()
        if self._strict:
            self._commit_folder(inode)
        else:
            last = [n for n, change in enumerate(self._journal) if change.about is inode or id(inode) in change.folders]
            self._commit(self._journal[: last[-1] + 1] if last else [])

    def sync_failed(self, inode: Inode) -> None:
        for change in _changes(inode):
            change.lost = True

    def _commit_folder(self, folder: Inode) -> None:
        wanted, found = {id(folder)}, []
        for change in reversed(self._journal):
            if change.folders & wanted:
                wanted |= change.folders
                found.append(change)
        self._commit(found[::-1])

    def _commit(self, changes: list[NameChange]) -> None:
        for change in changes:
            change.apply(lambda folder: folder.names)
        taken = {id(change) for change in changes}
        self._journal = [change for change in self._journal if id(change) not in taken]

    # -- what would be left -----------------------------------------------------------------------------------

    def sure_bytes(self, path: str) -> bytes | None:
        """What the disk is certain to hold at a path, None when that may be nothing."""
        at = self._tree.root
        for part in path.split("/"):
            found = at.names.get(part)
            if found is None:
                return None
            at = found
        return bytes(_sure(at)) if at.is_file else None

    def image(self, target: Path, keep: str, seed: int, spared: Callable[[str], bool]) -> int:
        """Write into the new folder `target` what a disk might hold now; returns the number of files.

        keep: `none` of what is not durable, `all` of it, or `some`, drawn by `seed`. spared: paths to leave out."""
        dice = random.Random(seed)
        names = {id(inode): dict(inode.names) for inode in self._known()}

        def names_of(folder: Inode) -> dict[str, Inode]:
            return names.setdefault(id(folder), dict(folder.names))

        for change in self._kept(keep, dice):
            change.apply(names_of)
        return _write(self._tree.root, target, "", names_of, _Content(keep, dice), spared)

    def _known(self) -> list[Inode]:
        return [inode for inode in self._tree if inode.is_folder]

    def _kept(self, keep: str, dice: random.Random) -> list[NameChange]:
        if keep == "all":
            return self._journal
        if keep == "none":
            return []
        if not self._strict:
            return self._journal[: dice.randint(0, len(self._journal))]
        blocked: set[int] = set()
        kept = []
        for change in self._journal:
            if change.folders & blocked or dice.random() < 0.3:
                blocked |= change.folders
            else:
                kept.append(change)
        return kept


@dataclass
class _Content:
    """The bytes of a file in an image."""

    keep: str
    dice: random.Random

    def __call__(self, inode: Inode) -> bytes:
        if inode.sure is None or (self.keep == "all" and inode.fd >= 0):
            return inode.data()
        data = bytearray(inode.sure)
        for change in _changes(inode) if self.keep != "none" else ():
            fate = self.dice.random() if self.keep == "some" else 0.0
            if fate < 0.4 and not change.lost:
                change.apply(data)
            elif change.data is not None and fate < 0.7:
                self._tear(change.offset, change.data, data)
            elif change.data is not None and fate < 0.85:
                self._grow(data, change.offset + len(change.data))
        return bytes(data)

    def _tear(self, offset: int, written: bytes, data: bytearray) -> None:
        """Each sector arrives by itself."""
        self._grow(data, offset + len(written))
        if self.dice.random() < 0.5:  # mostly they arrive in order
            end = offset + len(written)
            cut = min(end, -(-self.dice.randint(offset, end) // SECTOR_BYTES) * SECTOR_BYTES)
            Change(offset, written[: cut - offset]).apply(data)
            if self.dice.random() < 0.5:
                del data[max(cut, len(data) - (end - cut)) :]  # and the size tells of no more than these
            return
        at = offset
        while at < offset + len(written):
            end = min(offset + len(written), (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
            if self.dice.random() < 0.5:
                Change(at, written[at - offset : end - offset]).apply(data)
            at = end

    def _grow(self, data: bytearray, size: int) -> None:
        """The size has arrived, the bytes have not."""
        more = size - len(data)
        if more > 0:
            data.extend(bytes(more) if self.dice.random() < 0.5 else self.dice.randbytes(more))


def _changes(inode: Inode) -> list[Change]:
    return [change for change in inode.pending if isinstance(change, Change)]


def _sure(inode: Inode) -> bytes | bytearray:
    return inode.data() if inode.sure is None else inode.sure


def _write(
    folder: Inode,
    target: Path,
    inside: str,
    names_of: Callable[[Inode], Mapping[str, Inode]],
    content: _Content,
    spared: Callable[[str], bool],
) -> int:
    target.mkdir(mode=0o700)
    target.chmod(folder.mode)
    written = 0
    for name, inode in sorted(names_of(folder).items()):
        path = f"{inside}{name}"
        if spared(path):
            continue
        if inode.is_folder:
            written += _write(inode, target / name, f"{path}/", names_of, content, spared)
        elif inode.is_file:
            fd = os.open(target / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, inode.mode)
            with os.fdopen(fd, "wb") as stream:
                stream.write(content(inode))
            written += 1
        elif inode.kind == stat.S_IFLNK:
            (target / name).symlink_to(os.readlink("", dir_fd=inode.fd))
    return written
