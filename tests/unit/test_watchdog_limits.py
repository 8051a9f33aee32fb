"""The effective limit on fake /proc and cgroup trees of all kinds, damaged ones included."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from helpers.fake_machine import FakeMachine
from overnight_watchdog.limits import Bound, CgroupFolder, Kind, bounds, cgroup_at, memory_cgroups, parse_size

GIB = 2**30
MACHINE = 16 * GIB
V1_UNLIMITED = "9223372036854771712\n"


class Tree(FakeMachine):
    """Its limits, as they are found in it."""

    def limit(self, budget: int | None = None) -> Bound:
        return bounds(MACHINE, budget, memory_cgroups(self.proc, self.sys))[0]

    def sources(self) -> list[str]:
        found = bounds(MACHINE, None, memory_cgroups(self.proc, self.sys))
        return [bound.source.replace(str(self.sys), "/sys") for bound in found]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def v2(tree: Tree, membership: str, root: str = "/", **limits: str) -> None:
    """A v2 hierarchy; `limits` are folders below the mount (`_` = the mount, `a__b` = a/b) -> memory.max."""
    tree.lives_in(v2=membership, root=root)
    for name, text in limits.items():
        folder = "" if name == "_" else name.replace("__", "/") + "/"
        tree.write(f"sys/fs/cgroup/{folder}memory.max", text)


def v1(tree: Tree, membership: str, root: str = "/", **limits: str) -> None:
    tree.lives_in(v1=membership, root=root)
    for name, text in limits.items():
        folder = "" if name == "_" else name.replace("__", "/") + "/"
        tree.write(f"sys/fs/cgroup/memory/{folder}memory.limit_in_bytes", text)


def test_no_cgroups_at_all_leaves_the_machine(tree: Tree) -> None:
    assert tree.limit() == Bound("machine", MACHINE)
    assert tree.limit().source == "machine"


def test_v2_leaf(tree: Tree) -> None:
    v2(tree, "/user.slice/app", user_slice="max\n", **{"user.slice__app": f"{2 * GIB}\n"})
    assert (tree.limit().kind, tree.limit().limit_bytes) == ("cgroup2", 2 * GIB)
    assert tree.limit().source == f"cgroup:{tree.sys}/fs/cgroup/user.slice/app"


def test_v2_nested_the_smallest_on_the_way_up_wins(tree: Tree) -> None:
    v2(tree, "/a/b/c", a=f"{3 * GIB}", a__b=f"{1 * GIB}", a__b__c=f"{2 * GIB}")
    assert tree.limit().limit_bytes == GIB
    assert tree.sources() == [
        "cgroup:/sys/fs/cgroup/a/b",
        "cgroup:/sys/fs/cgroup/a/b/c",
        "cgroup:/sys/fs/cgroup/a",
        "machine",
    ]


def test_v2_siblings_do_not_bind(tree: Tree) -> None:
    v2(tree, "/a", a="max", b=f"{GIB}")
    assert tree.limit().kind == "machine"


def test_v2_container_with_its_own_namespace(tree: Tree) -> None:
    """Path "/", and the mounted root is the container's cgroup, which has a limit file."""
    v2(tree, "/", _=f"{4 * GIB}")
    assert tree.limit().limit_bytes == 4 * GIB


def test_v2_path_that_leads_out_of_the_namespace(tree: Tree) -> None:
    v2(tree, "/../../elsewhere", _=f"{5 * GIB}")
    assert tree.limit().limit_bytes == 5 * GIB


def test_v1_nested(tree: Tree) -> None:
    v1(tree, "/docker/abc", _=V1_UNLIMITED, docker=f"{3 * GIB}\n", docker__abc=f"{6 * GIB}\n")
    assert (tree.limit().kind, tree.limit().limit_bytes) == ("cgroup1", 3 * GIB)


def test_v1_unlimited_is_the_machine(tree: Tree) -> None:
    v1(tree, "/docker/abc", _=V1_UNLIMITED, docker=V1_UNLIMITED, docker__abc=V1_UNLIMITED)
    assert tree.sources() == ["machine"]


def test_v1_container_sees_the_hosts_path_below_a_mount_of_its_own_cgroup(tree: Tree) -> None:
    v1(tree, "/docker/abc", root="/docker/abc", _=f"{2 * GIB}")
    assert tree.limit().limit_bytes == 2 * GIB


def test_v1_subfolder_of_a_container(tree: Tree) -> None:
    v1(tree, "/docker/abc/cell", root="/docker/abc", _=f"{4 * GIB}", cell=f"{GIB}")
    assert [bound.split(":")[-1] for bound in tree.sources()][:2] == [
        "/sys/fs/cgroup/memory/cell",
        "/sys/fs/cgroup/memory",
    ]


def test_v1_mount_of_somebody_elses_cgroup_shows_its_root(tree: Tree) -> None:
    v1(tree, "/docker/abc", root="/kubepods/xyz", _=f"{2 * GIB}")
    assert tree.limit().limit_bytes == 2 * GIB


def test_v1_parent_without_hierarchy_does_not_bind_its_children(tree: Tree) -> None:
    v1(tree, "/a/b", a=f"{GIB}", a__b=f"{2 * GIB}")
    tree.write("sys/fs/cgroup/memory/a/memory.use_hierarchy", "0\n")
    assert tree.limit().limit_bytes == 2 * GIB
    tree.write("sys/fs/cgroup/memory/a/memory.use_hierarchy", "1\n")
    assert tree.limit().limit_bytes == GIB


def test_hybrid_takes_the_hierarchy_that_has_the_memory_controller(tree: Tree) -> None:
    v1(tree, "/job", _=V1_UNLIMITED, job=f"{2 * GIB}\n")
    tree.lives_in(v1="/job", v2="/job", hybrid=True)
    tree.write("sys/fs/cgroup/unified/cgroup.controllers", "hugetlb\n")
    assert tree.sources() == ["cgroup:/sys/fs/cgroup/memory/job", "machine"]


def test_names_with_blanks(tree: Tree) -> None:
    tree.write("proc/self/cgroup", "0::/my job\n")
    tree.write("proc/self/mountinfo", r"41 31 0:38 / /sys/fs/cg\040roup rw - cgroup2 none rw" + "\n")
    tree.write("sys/fs/cg roup/my job/memory.max", f"{GIB}")
    assert tree.limit().limit_bytes == GIB


def test_without_mountinfo_the_usual_places_are_searched(tree: Tree) -> None:
    tree.write("proc/self/cgroup", "0::/a\n")
    tree.write("sys/fs/cgroup/a/memory.max", f"{GIB}")
    assert tree.limit().limit_bytes == GIB


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "\n",
        "max",
        "-1",
        "0",
        "2GiB",
        "12 34",
        "\x00\x00",
        "\uff19\uff19",
        b"\xff\xfe",
        str(MACHINE),
        "1" * 40,
        "1" * 5000,
    ],
)
def test_a_damaged_or_meaningless_limit_bounds_nobody(tree: Tree, damaged: str | bytes) -> None:
    v2(tree, "/a/b", a=f"{8 * GIB}")
    tree.write("sys/fs/cgroup/a/b/memory.max", damaged)
    assert tree.limit().limit_bytes == 8 * GIB


@pytest.mark.parametrize(
    "damaged",
    ["", "garbage", "0:", "::", "0::relative", "4:memory\n", b"\xff\x00:\n", "0::/" + "x" * 5000, b"0::/\x00"],
)
def test_a_damaged_membership_leaves_the_machine(tree: Tree, damaged: str | bytes) -> None:
    v2(tree, "/a", a=f"{GIB}")
    tree.write("proc/self/cgroup", damaged)
    assert tree.limit().kind == "machine"


@pytest.mark.parametrize("damaged", ["", "1 2 3", "a b c d e - cgroup2", " - ", b"\xff\n\xfe - cgroup2 x rw\n"])
def test_a_damaged_mountinfo_falls_back(tree: Tree, damaged: str | bytes) -> None:
    v2(tree, "/a", a=f"{GIB}")
    tree.write("proc/self/mountinfo", damaged)
    assert tree.limit().limit_bytes == GIB


def test_the_budget_joins_in(tree: Tree) -> None:
    v2(tree, "/a", a=f"{2 * GIB}")
    assert tree.limit(budget=GIB) == Bound("budget", GIB, budget=True)
    assert tree.limit(budget=GIB).source == "budget"
    assert tree.limit(budget=3 * GIB).kind == "cgroup2"
    assert tree.limit(budget=2 * GIB).kind == "budget"  # of two equal bounds the narrower one is named
    assert bounds(MACHINE, 2 * MACHINE, ())[0].kind == "machine"


@pytest.mark.parametrize("kind", ["cgroup1", "cgroup2"])
def test_a_budget_with_a_cgroup_of_its_own_is_measured_there_and_still_called_budget(tree: Tree, kind: Kind) -> None:
    folder = CgroupFolder(kind, tree.sys / "fs/cgroup/ours")
    found = bounds(MACHINE, GIB, (), folder)
    assert found[0] == Bound(kind, GIB, folder.path, budget=True)
    assert [bound.source for bound in found] == ["budget", "machine"]
    assert bounds(MACHINE, None, (), folder) == (Bound("machine", MACHINE),)


def test_what_kind_of_cgroup_a_folder_is(tree: Tree) -> None:
    old = tree.v1("old", limit=GIB)
    new = tree.v2("new", limit="max")
    assert cgroup_at(old) == CgroupFolder("cgroup1", old)
    assert cgroup_at(new) == CgroupFolder("cgroup2", new)
    for none in (tree.sys, tree.sys / "gone", tree.sys / ("x" * 5000), Path("/\0"), Path("/\ud800")):
        assert cgroup_at(none) is None


def test_a_cgroup_file_system_that_may_not_be_looked_at_leaves_the_machine(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    v2(tree, "/a", a=f"{GIB}")
    real = Path.stat

    def refuse(path: Path, **more: bool) -> os.stat_result:
        if path.is_relative_to(tree.sys):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **more)

    monkeypatch.setattr(Path, "stat", refuse)
    assert tree.limit().kind == "machine"
    assert cgroup_at(tree.sys / "fs/cgroup/a") is None


def test_a_container_that_is_resized_is_seen_at_the_next_call(tree: Tree) -> None:
    v2(tree, "/a", a=f"{2 * GIB}")
    folders = memory_cgroups(tree.proc, tree.sys)
    assert bounds(MACHINE, None, folders)[0].limit_bytes == 2 * GIB
    tree.write("sys/fs/cgroup/a/memory.max", f"{GIB}")
    assert bounds(MACHINE, None, folders)[0].limit_bytes == GIB


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("512MiB", 512 * 2**20),
        ("2GiB", 2 * GIB),
        (" 1.5 gib ", 3 * 2**29),
        ("1TiB", 2**40),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "2GB of", "-1GiB", "0", "0.1B", "nan", "inf", "1e9", "2 Gi B", "9" * 400, "\u0663GiB"]
)
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="2GiB or 512MiB"):
        parse_size(text)


@given(st.text())
@example("0" * 81)
def test_any_text_is_a_positive_size_or_refused(text: str) -> None:
    """It is named, up to 80 characters of it."""
    try:
        assert parse_size(text) > 0
    except ValueError as error:
        assert repr(text[:80]) in str(error)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=60))
def test_no_bytes_at_all_make_it_fail(tree: Tree, membership: bytes, mounts: bytes, limit: bytes) -> None:
    """Whatever /proc and /sys say: every bound is a positive number, and the machine is always among them."""
    v2(tree, "/a", a=f"{GIB}")
    for path, good, damaged in (
        ("proc/self/cgroup", b"0::/a\n", membership),
        ("proc/self/mountinfo", b"", mounts),
        ("sys/fs/cgroup/a/memory.max", b"5", limit),
    ):
        for content in (damaged, good + damaged):
            tree.write(path, content)
            found = bounds(MACHINE, None, memory_cgroups(tree.proc, tree.sys))
            assert found[-1] == Bound("machine", MACHINE)
            assert all(0 < bound.limit_bytes <= MACHINE for bound in found)
