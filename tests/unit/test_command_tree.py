"""Who belongs to a tree, from a /proc of our own making; and what a dead attempt has left running."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from overnight.cells.command_tree import Member, descendants, in_cgroup, member_of, oldest_child
from overnight.dispatch import leftovers


class Proc:
    """A proc_root with processes: pid, parent, children by thread."""

    def __init__(self, root: Path, *, children_files: bool = True) -> None:
        self.root, self.children_files = root, children_files
        self.add(os.getpid(), 1)

    def add(self, pid: int, parent: int, *, state: str = "S", threads: dict[int, str] | None = None) -> None:
        for thread, children in (threads or {pid: ""}).items():
            task = self.root / str(pid) / "task" / str(thread)
            task.mkdir(parents=True)
            if self.children_files:
                (task / "children").write_text(children)
        fields = f"{parent} {pid} 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid * 10} 0 0"
        (self.root / str(pid) / "stat").write_text(f"{pid} (a) b (c)) {state} {fields}\n")

    def environ(self, pid: int, *entries: str) -> None:
        (self.root / str(pid) / "environ").write_bytes(b"".join(entry.encode() + b"\0" for entry in entries))


@pytest.mark.parametrize("children_files", [True, False])
def test_descendants_of_all_threads(tmp_path: Path, children_files: bool) -> None:
    proc = Proc(tmp_path, children_files=children_files)
    proc.add(10, 1, threads={10: "11 ", 12: "13 "})
    proc.add(11, 10, threads={11: "14 "})
    proc.add(13, 10, state="Z")
    proc.add(14, 11)
    proc.add(15, 1)
    found = descendants(10, tmp_path)
    assert [member.pid for member in found] == [11, 14]
    assert found[0] == Member(11, 110, 10, 11)


def test_a_pid_that_went_to_somebody_else_is_no_descendant(tmp_path: Path) -> None:
    proc = Proc(tmp_path)
    proc.add(10, 1, threads={10: "11 12 10 "})
    proc.add(11, 1)
    assert descendants(10, tmp_path) == []
    assert member_of(12, tmp_path) is None


@pytest.mark.parametrize("children_files", [True, False])
def test_a_runners_command_is_its_oldest_child(tmp_path: Path, children_files: bool) -> None:
    """Who was orphaned below it was started by the command, so later; its pid may be smaller."""
    proc = Proc(tmp_path, children_files=children_files)
    proc.add(10, 1, threads={10: "8 9 14 12 11 "})
    proc.add(8, 1)  # the pid has gone to somebody else meanwhile
    proc.add(9, 10, state="Z")
    for pid in (14, 12, 11):
        proc.add(pid, 10)
    found = oldest_child(10, tmp_path)
    assert found == Member(11, 110, 10, 11)
    assert oldest_child(14, tmp_path) is None


def test_members_of_a_cgroup(tmp_path: Path) -> None:
    proc = Proc(tmp_path / "proc")
    proc.add(10, 1)
    (tmp_path / "cgroup.procs").write_text("0\n10\n11\n")
    assert [member.pid for member in in_cgroup(tmp_path, tmp_path / "proc")] == [10]
    assert in_cgroup(tmp_path / "gone", tmp_path / "proc") == []


def test_tokens() -> None:
    assert leftovers.token(Path("/a")) == leftovers.token(Path("/a")) != leftovers.token(Path("/b"))
    assert len(leftovers.token(Path("/a"))) == 8


def test_a_home_that_is_reached_by_a_link_is_the_same_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, link = tmp_path.resolve() / "home", tmp_path / "link"
    home.mkdir()
    link.symlink_to(home)
    monkeypatch.chdir(home)
    assert leftovers.token(link) == leftovers.token(home) == leftovers.token(Path())
    assert leftovers.token(link / "in") == leftovers.token(home / "in")
    assert leftovers.token(home) == hashlib.sha256(os.fsencode(home)).hexdigest()[:8], "as it always was"


def test_leftovers_by_environment(tmp_path: Path) -> None:
    proc = Proc(tmp_path)
    proc.environ(os.getpid(), "OVERNIGHT_ATTEMPT=00000001:5")
    for pid, entries in {
        20: ["A=b", "OVERNIGHT_ATTEMPT=00000001:5"],
        21: ["OVERNIGHT_ATTEMPT=00000001:55"],
        22: ["OVERNIGHT_ATTEMPT=00000002:5"],
        23: ["X=OVERNIGHT_ATTEMPT=00000001:5"],
        24: [],
    }.items():
        proc.add(pid, 1)
        proc.environ(pid, *entries)
    proc.add(25, 1)  # its environment may not be read
    proc.add(26, 1, state="Z")
    proc.environ(26, "OVERNIGHT_ATTEMPT=00000001:5")
    assert leftovers.find("00000001:5", tmp_path) == [(20, 200)]
    assert leftovers.find("00000001", tmp_path) == [(20, 200), (21, 210)]


def test_neither_ourselves_nor_whom_we_come_from(tmp_path: Path) -> None:
    (tmp_path / str(os.getpid())).mkdir()
    proc = Proc.__new__(Proc)
    proc.root, proc.children_files = tmp_path, True
    proc.add(30, 1)
    proc.add(31, 30)
    fields = f"31 {os.getpid()} 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 7 0 0"
    (tmp_path / str(os.getpid()) / "stat").write_text(f"{os.getpid()} (x) S {fields}\n")
    for pid in (30, 31, os.getpid()):
        proc.environ(pid, "OVERNIGHT_ATTEMPT=00000001:5")
    assert leftovers.find("00000001", tmp_path) == []
    (tmp_path / "cgroup.procs").write_text(f"30\n31\n{os.getpid()}\n")
    assert leftovers.in_cgroup(tmp_path, tmp_path) == []
