"""Inodes: each one that was ever seen, with its place now, its file in the backing folder, and its durable state."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

READ_BYTES = 1 << 20


class Inode:
    """fd: of the backing file, open for reading and writing (any other kind: O_PATH); -1 once it is let go.

    entries: of a folder as it is; names: of a folder as the disk is certain to hold it. sure: the bytes that the disk
    is certain to hold, None = those of the backing file; pending: what was done to them since.
    """

    def __init__(self, number: int, fd: int) -> None:
        self.number, self.fd = number, fd
        self.kind = stat.S_IFMT(os.fstat(fd).st_mode)
        self.parent: Inode | None = None
        self.name = ""
        self.entries: dict[str, Inode] = {}
        self.names: dict[str, Inode] = {}
        self.sure: bytearray | None = None
        self.pending: list[object] = []
        self.lookups = self.opened = 0
        self.mode = stat.S_IMODE(os.fstat(fd).st_mode)

    @property
    def is_folder(self) -> bool:
        return self.kind == stat.S_IFDIR

    @property
    def is_file(self) -> bool:
        return self.kind == stat.S_IFREG

    def stat(self) -> os.stat_result:
        return os.fstat(self.fd)

    def path(self, name: str | None = None) -> str:
        """Below the mount, as it is called now; of `name` in it. A file without a name keeps its last one."""
        parts = [] if name is None else [name]
        at: Inode | None = self
        while at is not None and at.name:
            parts.append(at.name)
            at = at.parent
        return "/".join(reversed(parts)) or "."

    def data(self) -> bytes:
        """What the backing file holds now."""
        size, pieces, at = os.fstat(self.fd).st_size, [], 0
        while at < size and (piece := os.pread(self.fd, READ_BYTES, at)):
            pieces.append(piece)
            at += len(piece)
        return b"".join(pieces)


class Tree:
    """All inodes by number. Nothing but this process may change the backing folder."""

    def __init__(self, backing: Path) -> None:
        self._inodes: dict[int, Inode] = {}
        self._last = 0
        self.root = self.add(None, "", os.open(backing, os.O_PATH | os.O_DIRECTORY))
        self._scan(self.root)

    def __getitem__(self, number: int) -> Inode:
        return self._inodes[number]

    def __iter__(self) -> Iterator[Inode]:
        return iter(self._inodes.values())

    def add(self, parent: Inode | None, name: str, fd: int) -> Inode:
        """A new inode at a place. Its name is not durable yet: that is said elsewhere."""
        self._last += 1
        inode = self._inodes[self._last] = Inode(self._last, fd)
        if parent is not None:
            inode.parent, inode.name = parent, name
            parent.entries[name] = inode
        return inode

    def open_at(self, parent: Inode, name: str) -> int:
        """A descriptor of a backing file, whatever its mode allows: we are root."""
        found = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        flags = os.O_RDWR if stat.S_ISREG(found.st_mode) else os.O_PATH
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=parent.fd)

    def _scan(self, folder: Inode) -> None:
        """Everything that is there at the start is durable."""
        for name in os.listdir(f"/proc/self/fd/{folder.fd}"):  # noqa: PTH208 - names, not paths
            inode = self.add(folder, name, self.open_at(folder, name))
            if inode.is_folder:
                self._scan(inode)
        folder.names = dict(folder.entries)

    def let_go(self, inode: Inode) -> None:
        """Close the file of an inode that has no name and no user any more; the disk may still hold it."""
        placed = inode.parent is not None and inode.parent.entries.get(inode.name) is inode
        if placed or inode is self.root or inode.lookups > 0 or inode.opened > 0 or inode.fd < 0:
            return
        if inode.is_file and inode.sure is None:
            inode.sure = bytearray(inode.data())
        os.close(inode.fd)
        inode.fd = -1
        self._inodes.pop(inode.number, None)
