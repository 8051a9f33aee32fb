"""Real file systems that go bad as a whole: a small tmpfs, an ext4 on a loop device. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from helpers.waiting import until


class CannotMount(Exception):
    """This machine does not let us."""


class SmallDisk:
    """A file system of its own at `point`. A context: it is gone afterwards."""

    def __init__(self, point: Path, image: Path | None = None, *, size: int = 12 * 2**20, inodes: int = 0) -> None:
        """image: the file that holds an ext4; None for a tmpfs. inodes: how many a tmpfs may have, 0 = enough."""
        self.point, self._image, self._size, self._inodes = point, image, size, inodes
        self._ballast = point / "ballast"

    def __enter__(self) -> SmallDisk:
        self.point.mkdir(parents=True, exist_ok=True)
        if self._image is None:
            options = f"size={self._size}" + (f",nr_inodes={self._inodes}" if self._inodes else "")
            _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", self.point)
        else:
            with self._image.open("wb") as file:
                file.truncate(self._size)
            _run("mkfs.ext4", "-q", "-F", "-m", "0", self._image)
            self.mount()
        return self

    def mount(self) -> None:
        _run("mount", "-o", "loop,errors=remount-ro", self._image, self.point)

    def unmount(self) -> None:
        """In good order: nobody may use it any more."""
        until(lambda: subprocess.run(["umount", self.point], capture_output=True, check=False).returncode == 0, 20)

    def repair(self) -> None:
        """After it was given up by its kernel: unmounted, checked, mounted again."""
        self.unmount()
        done = subprocess.run(["e2fsck", "-fy", str(self._image)], capture_output=True, text=True, check=False)
        if done.returncode > 1:  # 1: mended
            raise CannotMount(f"e2fsck: {done.stdout} {done.stderr}")
        self.mount()

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", self.point], capture_output=True, check=False)

    # -- what goes wrong --------------------------------------------------------------------------------------

    def fill(self) -> None:
        """A file that takes all the room there is."""
        with self._ballast.open("ab", buffering=0) as stream:
            size = 2**16
            while size:
                try:
                    stream.write(b"x" * size)
                except OSError:
                    size //= 4
            os.fsync(stream.fileno())

    def fill_names(self) -> None:
        """Files until there can be no more."""
        self._ballast.mkdir(exist_ok=True)
        number = 0
        while True:
            try:
                (self._ballast / str(number)).touch()
            except OSError:
                return
            number += 1

    def empty(self) -> None:
        """Room again."""
        if self._ballast.is_dir():
            shutil.rmtree(self._ballast)
        else:
            self._ballast.unlink()

    def read_only(self, on: bool) -> None:
        """Only while nobody has a file open for writing."""
        until(lambda: _tried("mount", "-o", f"remount,{'ro' if on else 'rw'}", self.point), 20, "a remount")

    def give_up(self) -> None:
        """What ext4 does after an error of its disk: from now on it is read-only, whoever writes."""
        subprocess.run(["mount", "-o", "remount,abort", str(self.point)], capture_output=True, check=False)
        probe = self.point / ".probe"
        try:
            probe.touch()
        except OSError:
            return
        probe.unlink()
        raise CannotMount("this kernel's ext4 knows no mount option `abort`")


def _run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotMount(f"{command[0]}: {done.stderr.strip()}")


def _tried(*command: object) -> bool:
    return subprocess.run([str(word) for word in command], capture_output=True, check=False).returncode == 0
