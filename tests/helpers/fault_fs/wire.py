"""The kernel's FUSE protocol, as far as it is spoken here: include/uapi/linux/fuse.h, version 7.31."""

from __future__ import annotations

import os
from enum import IntEnum
from struct import Struct

MAJOR, MINOR = 7, 31
MAX_WRITE_BYTES = 128 * 1024
BUFFER_BYTES = MAX_WRITE_BYTES + 64 * 1024
ROOT = 1

ASYNC_READ, BIG_WRITES = 1 << 0, 1 << 5
KEEP_CACHE = 1 << 1
"""Of an opened file: all changes go through this kernel, so what it has cached is true."""

VALID_S = 3600
"""For the same reason names and attributes may be cached."""

SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME = 1, 2, 4, 8, 16, 32
SET_ATIME_NOW, SET_MTIME_NOW = 128, 256


class Op(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    RENAME2 = 45


IN_HEADER = Struct("<IIQQIIIHH")
"""len, opcode, unique, nodeid, uid, gid, pid, extensions, padding."""

OUT_HEADER = Struct("<IiQ")
INIT_IN = Struct("<IIII")
INIT_OUT = Struct("<IIIIHHIIHH32x")
ATTR = Struct("<QQQQQQIIIIIIIIII")
ENTRY = Struct("<QQQQII")
ATTR_OUT = Struct("<QII")
OPEN_IN, OPEN_OUT = Struct("<II"), Struct("<QII")
CREATE_IN = Struct("<IIII")
MKDIR_IN, MKNOD_IN = Struct("<II"), Struct("<IIII")
READ_IN = WRITE_IN = Struct("<QQIIQII")
WRITE_OUT = Struct("<II")
RELEASE_IN = Struct("<QIIQ")
FSYNC_IN = Struct("<QII")
SETATTR_IN = Struct("<IIQQQQQQIIIIIIII")
RENAME_IN, RENAME2_IN = Struct("<Q"), Struct("<QII")
FORGET_IN, BATCH_FORGET_IN, FORGET_ONE = Struct("<Q"), Struct("<II"), Struct("<QQ")
STATFS_OUT = Struct("<QQQQQIIII24x")
DIRENT = Struct("<QQII")


def attr(number: int, found: os.stat_result) -> bytes:
    seconds = (int(found.st_atime), int(found.st_mtime), int(found.st_ctime))
    rest = (found.st_atime_ns % 10**9, found.st_mtime_ns % 10**9, found.st_ctime_ns % 10**9)
    return ATTR.pack(
        number,
        found.st_size,
        found.st_blocks,
        *seconds,
        *rest,
        found.st_mode,
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_rdev,
        4096,
        0,
    )


def entry(number: int, found: os.stat_result) -> bytes:
    return ENTRY.pack(number, 0, VALID_S, VALID_S, 0, 0) + attr(number, found)


def names(data: bytes) -> list[str]:
    """NUL-terminated names, as a request carries them."""
    return [os.fsdecode(name) for name in data.split(b"\0")[:-1]]
