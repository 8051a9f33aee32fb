"""What each request of the kernel does: to the backing folder, and to what the disk is certain to hold."""

from __future__ import annotations

import errno
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.fault_fs import wire
from helpers.fault_fs.durability import Durability
from helpers.fault_fs.rules import Call, Killed, Rule
from helpers.fault_fs.tree import Inode, Tree
from helpers.fault_fs.wire import Op

Begin = Callable[[Call], Rule | None]


class Requests:
    """`answer` is the body of the reply; raises OSError. caller: pid, uid and gid of the request under way."""

    def __init__(self, tree: Tree, durability: Durability, begin: Begin) -> None:
        self._tree, self._durability, self._begin = tree, durability, begin
        self.caller = (0, 0, 0)
        self._listings: dict[int, list[tuple[str, Inode]]] = {}
        self._handle = 0
        self._do: dict[int, Callable[[Inode, bytes], bytes]] = {
            Op.LOOKUP: self._lookup,
            Op.GETATTR: lambda inode, _: wire.ATTR_OUT.pack(wire.VALID_S, 0, 0) + wire.attr(inode.number, inode.stat()),
            Op.SETATTR: self._setattr,
            Op.READLINK: lambda inode, _: os.fsencode(os.readlink("", dir_fd=inode.fd)),
            Op.SYMLINK: self._symlink,
            Op.MKNOD: self._mknod,
            Op.MKDIR: self._mkdir,
            Op.UNLINK: lambda folder, body: self._remove("unlink", folder, body),
            Op.RMDIR: lambda folder, body: self._remove("rmdir", folder, body),
            Op.RENAME: lambda folder, body: self._rename(folder, body, wire.RENAME_IN.size, 0),
            Op.RENAME2: lambda folder, body: self._rename(
                folder, body, wire.RENAME2_IN.size, wire.RENAME2_IN.unpack_from(body)[1]
            ),
            Op.OPEN: self._open,
            Op.CREATE: self._create,
            Op.READ: self._read,
            Op.WRITE: self._write,
            Op.RELEASE: self._release,
            Op.FSYNC: lambda inode, _: self._sync("fsync", inode),
            Op.FSYNCDIR: lambda inode, _: self._sync("fsyncdir", inode),
            Op.OPENDIR: self._opendir,
            Op.READDIR: self._readdir,
            Op.RELEASEDIR: self._releasedir,
            Op.STATFS: lambda inode, _: self._statfs(),
        }

    def answer(self, code: int, node: int, body: bytes) -> bytes:
        if code == Op.INIT:
            flags = wire.ASYNC_READ | wire.BIG_WRITES
            most = wire.MAX_WRITE_BYTES
            return wire.INIT_OUT.pack(wire.MAJOR, wire.MINOR, most, flags, 16, 12, most, 1, most // 4096, 0)
        if code == Op.FORGET:
            self._forget(node, wire.FORGET_IN.unpack_from(body)[0])
            return b""
        if code == Op.BATCH_FORGET:
            for number, times in wire.FORGET_ONE.iter_unpack(body[wire.BATCH_FORGET_IN.size :]):
                self._forget(number, times)
            return b""
        if code in (Op.INTERRUPT, Op.DESTROY):
            return b""
        if (do := self._do.get(code)) is None:
            raise OSError(errno.ENOSYS, "not spoken here")
        return do(self._tree[node], body)

    @contextmanager
    def _changing(
        self, kind: str, path: str, *, to: str = "", offset: int = 0, length: int = 0
    ) -> Iterator[Rule | None]:
        """Around what changes the disk. Raises OSError when it has to fail."""
        call = Call(kind, path, self.caller[0], to, offset, length)
        rule = self._begin(call)
        try:
            yield rule
        except OSError as error:
            call.failed = error.errno or errno.EIO
            raise
        if rule is not None and rule.does == "kill_after" and call.pid > 1:
            os.kill(call.pid, signal.SIGKILL)

    # -- names ------------------------------------------------------------------------------------------------

    def _lookup(self, folder: Inode, body: bytes) -> bytes:
        name = wire.names(body)[0]
        if (inode := folder.entries.get(name)) is None:
            raise OSError(errno.ENOENT, name)
        return self._entry(inode)

    def _entry(self, inode: Inode) -> bytes:
        inode.lookups += 1
        return wire.entry(inode.number, inode.stat())

    def _forget(self, number: int, times: int) -> None:
        inode = self._tree[number]
        inode.lookups -= times
        self._tree.let_go(inode)

    def _made(self, folder: Inode, name: str) -> Inode:
        """Take in what has just been made in the backing folder."""
        os.chown(name, *self.caller[1:], dir_fd=folder.fd, follow_symlinks=False)
        inode = self._tree.add(folder, name, self._tree.open_at(folder, name))
        if inode.is_file:
            self._durability.created(inode)
        self._durability.names_changed(inode, (folder, name, inode))
        return inode

    def _create(self, folder: Inode, body: bytes) -> bytes:
        _, mode, _, _ = wire.CREATE_IN.unpack_from(body)
        name = wire.names(body[wire.CREATE_IN.size :])[0]
        if name in folder.entries:
            raise OSError(errno.EEXIST, name)
        with self._changing("create", folder.path(name)):
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & 0o7777, dir_fd=folder.fd))
            inode = self._made(folder, name)
        inode.opened += 1
        return self._entry(inode) + wire.OPEN_OUT.pack(self._new_handle(), wire.KEEP_CACHE, 0)

    def _mknod(self, folder: Inode, body: bytes) -> bytes:
        mode, device, _, _ = wire.MKNOD_IN.unpack_from(body)
        name = wire.names(body[wire.MKNOD_IN.size :])[0]
        with self._changing("create", folder.path(name)):
            os.mknod(name, mode, device, dir_fd=folder.fd)
            return self._entry(self._made(folder, name))

    def _symlink(self, folder: Inode, body: bytes) -> bytes:
        name, target = wire.names(body)
        with self._changing("create", folder.path(name)):
            os.symlink(target, name, dir_fd=folder.fd)
            return self._entry(self._made(folder, name))

    def _mkdir(self, folder: Inode, body: bytes) -> bytes:
        mode, _ = wire.MKDIR_IN.unpack_from(body)
        name = wire.names(body[wire.MKDIR_IN.size :])[0]
        with self._changing("mkdir", folder.path(name)):
            os.mkdir(name, mode & 0o7777, dir_fd=folder.fd)
            return self._entry(self._made(folder, name))

    def _remove(self, kind: str, folder: Inode, body: bytes) -> bytes:
        name = wire.names(body)[0]
        with self._changing(kind, folder.path(name)):
            (os.rmdir if kind == "rmdir" else os.unlink)(name, dir_fd=folder.fd)
            inode = folder.entries.pop(name)
            self._durability.names_changed(inode, (folder, name, None))
        self._tree.let_go(inode)
        return b""

    def _rename(self, folder: Inode, body: bytes, head: int, flags: int) -> bytes:
        if flags:
            raise OSError(errno.EINVAL, "neither exchange nor no-replace")
        other = self._tree[wire.RENAME_IN.unpack_from(body)[0]]
        old, new = wire.names(body[head:])
        with self._changing("rename", folder.path(old), to=other.path(new)):
            os.rename(old, new, src_dir_fd=folder.fd, dst_dir_fd=other.fd)
            replaced = other.entries.get(new)
            inode = folder.entries.pop(old)
            other.entries[new] = inode
            inode.parent, inode.name = other, new
            self._durability.names_changed(inode, (folder, old, None), (other, new, inode))
        if replaced is not None and replaced is not inode:
            self._tree.let_go(replaced)
        return b""

    # -- data -------------------------------------------------------------------------------------------------

    def _new_handle(self) -> int:
        self._handle += 1
        return self._handle

    def _open(self, inode: Inode, body: bytes) -> bytes:
        del body
        inode.opened += 1
        return wire.OPEN_OUT.pack(self._new_handle(), wire.KEEP_CACHE, 0)

    def _release(self, inode: Inode, body: bytes) -> bytes:
        del body
        inode.opened -= 1
        self._tree.let_go(inode)
        return b""

    def _read(self, inode: Inode, body: bytes) -> bytes:
        _, offset, size, *_ = wire.READ_IN.unpack_from(body)
        return os.pread(inode.fd, size, offset)

    def _write(self, inode: Inode, body: bytes) -> bytes:
        _, offset, size, *_ = wire.WRITE_IN.unpack_from(body)
        data = body[wire.WRITE_IN.size : wire.WRITE_IN.size + size]
        with self._changing("write", inode.path(), offset=offset, length=size) as rule:
            if rule is not None and rule.does == "short":
                data = data[: size // 2]
            self._durability.data_changes(inode, offset, data)
            done = os.pwrite(inode.fd, data, offset)
        return wire.WRITE_OUT.pack(done, 0)

    def _sync(self, kind: str, inode: Inode) -> bytes:
        try:
            with self._changing(kind, inode.path()):
                self._durability.synced(inode)
        except Killed:
            raise
        except OSError:
            self._durability.sync_failed(inode)
            raise
        return b""

    def _setattr(self, inode: Inode, body: bytes) -> bytes:
        fields = wire.SETATTR_IN.unpack_from(body)
        valid, size, atime_s, mtime_s = fields[0], fields[3], fields[5], fields[6]
        atime_ns, mtime_ns, mode, uid, gid = fields[8], fields[9], fields[11], fields[13], fields[14]
        place = f"/proc/self/fd/{inode.fd}"
        if valid & wire.SET_SIZE:
            with self._changing("truncate", inode.path(), offset=size):
                self._durability.data_changes(inode, size, None)
                os.ftruncate(inode.fd, size)
        if valid & wire.SET_MODE:
            Path(place).chmod(stat.S_IMODE(mode))
            inode.mode = stat.S_IMODE(mode)
        if valid & (wire.SET_UID | wire.SET_GID):
            os.chown(place, uid if valid & wire.SET_UID else -1, gid if valid & wire.SET_GID else -1)
        if valid & (wire.SET_ATIME | wire.SET_MTIME):
            found, now_ns = inode.stat(), time.time_ns()
            times = [found.st_atime_ns, found.st_mtime_ns]
            if valid & wire.SET_ATIME:
                times[0] = now_ns if valid & wire.SET_ATIME_NOW else atime_s * 10**9 + atime_ns
            if valid & wire.SET_MTIME:
                times[1] = now_ns if valid & wire.SET_MTIME_NOW else mtime_s * 10**9 + mtime_ns
            os.utime(place, ns=(times[0], times[1]))
        return wire.ATTR_OUT.pack(wire.VALID_S, 0, 0) + wire.attr(inode.number, inode.stat())

    # -- folders ----------------------------------------------------------------------------------------------

    def _opendir(self, folder: Inode, body: bytes) -> bytes:
        del body
        handle = self._new_handle()
        self._listings[handle] = sorted(folder.entries.items())
        return wire.OPEN_OUT.pack(handle, 0, 0)

    def _readdir(self, folder: Inode, body: bytes) -> bytes:
        handle, offset, size, *_ = wire.READ_IN.unpack_from(body)
        if offset == 0:  # from the start again, as rewinddir asks for
            self._listings[handle] = sorted(folder.entries.items())
        written = b""
        for place, (name, inode) in enumerate(self._listings[handle][offset:], offset + 1):
            encoded = os.fsencode(name)
            one = wire.DIRENT.pack(inode.number, place, len(encoded), inode.kind >> 12) + encoded
            one += bytes(-len(one) % 8)
            if len(written) + len(one) > size:
                break
            written += one
        return written

    def _releasedir(self, folder: Inode, body: bytes) -> bytes:
        del folder
        self._listings.pop(wire.READ_IN.unpack_from(body + bytes(40))[0], None)
        return b""

    def _statfs(self) -> bytes:
        found = os.fstatvfs(self._tree.root.fd)
        blocks = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
        return wire.STATFS_OUT.pack(*blocks, found.f_bsize, 255, found.f_frsize, 0)
