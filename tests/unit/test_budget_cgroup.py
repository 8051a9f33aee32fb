"""Where the budget's cgroup is made, on fake trees of all kinds."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from overnight.dispatch import budget_cgroup
from overnight.dispatch.budget_cgroup import Missing, find_own, join, name_of

HOME = Path("/srv/night")
NAME = name_of(HOME)
BUDGET = 2 << 30
V1_MOUNT = "35 32 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
V2_MOUNT = "41 31 0:38 {root} /sys/fs/cgroup{where} rw,relatime - cgroup2 cgroup2 rw\n"


class Tree:
    """A fake /proc and /sys. Folders get the kernel's files when they are made, as in the real thing."""

    def __init__(self, folder: Path, membership: str, mounts: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proc, self.sys = folder / "proc", folder / "sys"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self/cgroup").write_text(membership)
        (self.proc / "self/mountinfo").write_text(mounts)
        self.v2 = "cgroup2" in mounts
        self.limits = True
        real_mkdir, real_rmdir = Path.mkdir, Path.rmdir

        def mkdir(path: Path, *args: int) -> None:
            real_mkdir(path, *args)
            self.furnish(path)

        def rmdir(path: Path) -> None:
            for file in [one for one in path.iterdir() if one.is_file()]:
                file.unlink()
            real_rmdir(path)

        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(Path, "rmdir", rmdir)

    def furnish(self, path: Path) -> None:
        (path / "cgroup.procs").write_text("")
        if self.v2:
            (path / "cgroup.controllers").write_text("cpu memory\n")
            (path / "cgroup.subtree_control").write_text("")
        if self.limits:
            (path / ("memory.max" if self.v2 else "memory.limit_in_bytes")).write_text("max")

    def cgroup(self, path: str) -> Path:
        """A folder of the kernel's below /sys."""
        at = self.sys
        for part in Path(path).parts:
            at = at / part
            os.makedirs(at, exist_ok=True)  # noqa: PTH103 - Path.mkdir is the one under test
            self.furnish(at)
        return at

    def join(self) -> budget_cgroup.BudgetCgroup:
        return join(HOME, BUDGET, proc_root=self.proc, sys_root=self.sys)


def test_v1_below_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path, "4:memory:/a/b\n0::/\n", V1_MOUNT.format(root="/"), monkeypatch)
    ours = tree.cgroup("fs/cgroup/memory/a/b")
    joined = tree.join()
    assert joined.folder == joined.leaf == ours / NAME
    assert (joined.folder / "memory.limit_in_bytes").read_text() == str(BUDGET)
    assert (joined.leaf / "cgroup.procs").read_text() == str(os.getpid())
    assert joined.leave() is None
    assert not joined.folder.exists()
    assert (ours / "cgroup.procs").read_text() == str(os.getpid())


def test_v2_beside_our_own_with_a_leaf_for_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = V2_MOUNT.format(root="/", where="")
    tree = Tree(tmp_path, "0::/user.slice/night.service\n", mounts, monkeypatch)
    ours = tree.cgroup("fs/cgroup/user.slice/night.service")
    joined = tree.join()
    assert joined.folder == ours.parent / NAME
    assert joined.leaf == joined.folder / "main"
    assert (ours.parent / "cgroup.subtree_control").read_text() == "+memory"
    assert (joined.folder / "memory.max").read_text() == str(BUDGET)
    assert (joined.leaf / "cgroup.procs").read_text() == str(os.getpid())
    assert joined.leave() is None
    assert not joined.folder.exists()


@pytest.mark.parametrize("file", ["memory.max", "memory.high", "memory.swap.max"])
def test_a_limit_of_our_own_is_not_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    tree = Tree(tmp_path, "0::/a/b\n", V2_MOUNT.format(root="/", where=""), monkeypatch)
    ours = tree.cgroup("fs/cgroup/a/b")
    (ours / file).write_text("4294967296\n")
    with pytest.raises(Missing, match=rf"{ours} has {file} = 4294967296, which we would escape"):
        tree.join()
    assert [path.name for path in ours.parent.iterdir() if path.is_dir()] == ["b"]
    assert (ours.parent / "cgroup.subtree_control").read_text() == ""


@pytest.mark.parametrize("where", ["parent", "mount", "own budget"])
def test_limits_that_hold_for_the_new_one_too_are_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = {"parent": "/a/b", "mount": "/", "own budget": f"/a/{NAME}/main"}[where]
    tree = Tree(tmp_path, f"0::{path}\n", V2_MOUNT.format(root="/", where=""), monkeypatch)
    ours = tree.cgroup("fs/cgroup" + path.rstrip("/"))
    ((ours if where == "mount" else ours.parent) / "memory.max").write_text("4294967296")
    joined = tree.join()
    assert joined.folder == (ours if where == "mount" else tree.sys / "fs/cgroup/a") / NAME
    assert (joined.folder / "memory.max").read_text() == str(BUDGET)


def test_v1_is_below_a_limit_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path, "4:memory:/a\n", V1_MOUNT.format(root="/"), monkeypatch)
    ours = tree.cgroup("fs/cgroup/memory/a")
    (ours / "memory.limit_in_bytes").write_text("4294967296")
    assert tree.join().folder == ours / NAME


def test_a_folder_that_a_killed_daemon_left_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path, "4:memory:/a\n", V1_MOUNT.format(root="/"), monkeypatch)
    tree.cgroup(f"fs/cgroup/memory/a/{NAME}")
    assert (tree.join().folder / "memory.limit_in_bytes").read_text() == str(BUDGET)


def test_started_inside_it_there_is_no_second_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path, f"4:memory:/a/{NAME}\n", V1_MOUNT.format(root="/"), monkeypatch)
    ours = tree.cgroup(f"fs/cgroup/memory/a/{NAME}")
    joined = tree.join()
    assert (joined.folder, joined.back) == (ours, ours.parent)


def test_in_a_container_that_shows_its_own_cgroup_as_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path, "4:memory:/docker/abc\n", V1_MOUNT.format(root="/docker/abc"), monkeypatch)
    mount = tree.cgroup("fs/cgroup/memory")
    assert find_own(tree.proc, tree.sys).folder == mount
    assert tree.join().folder == mount / NAME


def test_a_hybrid_machine_has_memory_in_one_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = V1_MOUNT.format(root="/") + V2_MOUNT.format(root="/", where="/unified")
    tree = Tree(tmp_path, "4:memory:/a\n0::/b\n", mounts, monkeypatch)
    tree.v2 = False
    ours = tree.cgroup("fs/cgroup/memory/a")
    tree.cgroup("fs/cgroup/unified/b")
    assert tree.join().folder == ours / NAME


@pytest.mark.parametrize("lack", ["membership", "mount", "controller", "limit file", "rights", "not delegated", "path"])
def test_where_it_cannot_be_made_that_is_said_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    membership = {"membership": "", "path": "0::/../../else\n"}.get(lack, "0::/a/b\n")
    mounts = "" if lack == "mount" else V2_MOUNT.format(root="/", where="")
    tree = Tree(tmp_path, membership, mounts, monkeypatch)
    ours = tree.cgroup("fs/cgroup/a/b")
    tree.limits = lack != "limit file"
    if lack == "controller":
        (ours.parent / "cgroup.controllers").write_text("cpu pids\n")
    if lack == "not delegated":
        (ours.parent / "cgroup.subtree_control").unlink()
    if lack == "rights":

        def refuse(path: Path, *_: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(Missing) as missing:
        tree.join()
    assert "\n" not in str(missing.value)
    assert [path.name for path in ours.parent.iterdir() if path.is_dir()] == ["b"]


def test_the_name_is_the_homes_and_stays(tmp_path: Path) -> None:
    assert name_of(HOME) == name_of(Path("/srv/night"))
    assert name_of(HOME) != name_of(tmp_path)
    assert len(NAME) == len("overnight-") + 8
    (tmp_path / "link").symlink_to(tmp_path)
    assert name_of(tmp_path / "link") == name_of(tmp_path)
    assert name_of(HOME) == "overnight-" + hashlib.sha256(b"/srv/night").hexdigest()[:8]


@pytest.mark.root
def test_the_real_thing_is_joined_counts_what_is_forked_and_goes(tmp_path: Path) -> None:
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            joined = join(tmp_path, 256 << 20)
            inside = find_own().folder in (joined.folder, joined.leaf)
            os.write(write, f"{joined.folder} {inside} {joined.leave()} {joined.folder.exists()}".encode())
        except Missing as why:
            os.write(write, f"missing: {why}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    said = os.read(read, 4096).decode()
    if said.startswith("missing"):
        pytest.skip(said)
    folder, inside, why, exists = said.split(" ")
    assert Path(folder).name == name_of(tmp_path)
    assert (inside, why, exists) == ("True", "None", "False")
