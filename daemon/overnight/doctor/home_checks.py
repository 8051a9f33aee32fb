"""Facts of a home -> rows: settings, folders, disk, what runs. Pure."""

from __future__ import annotations

from overnight import figures
from overnight.doctor.facts import Folder, QueueFacts, Running, Settings
from overnight.doctor.memory_checks import source
from overnight.doctor.row import Row, Status, worst
from overnight.doctor.watchdog_view import View
from overnight.repair import unknown_grids

_SILENT_S = 10.0
_SOME_DISK_BYTES = 2**30
_NO_DISK_BYTES = 64 * 2**20
_SOME_INODES = 10_000
_NO_INODES = 100
_SUPERVISORD_FILES = 1024
"""`minfds` in etc/supervisord.conf: it refuses to start where it cannot have as many."""

_NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse", "gfs2", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
    "orangefs", "smb3", "smbfs", "vboxsf",
}  # fmt: skip
_VOLATILE = {"tmpfs", "ramfs"}


def settings_check(found: Settings) -> Row:
    if found.complaint:
        return Row("settings", Status.BAD, found.complaint, "Nothing starts until this line is mended.")
    return Row("settings", Status.OK, "etc/overnight.toml can be read")


def budget_check(found: Settings, view: View, no_cgroup: str = "") -> Row:
    """no_cgroup: why a cgroup around the budget has no place."""
    budget = found.budget_bytes
    if budget is None:
        advice = 'To leave room for others here: budget = "8GiB", say, under [memory] in etc/overnight.toml.'
        return Row("budget", Status.OK, "none: all that the memory limit leaves may be used", advice)
    others = [(limit, where) for where, limit in view.bounds() if where != "budget"]
    limit, where = min(others, default=(None, ""))
    if limit is not None and budget > limit:
        return Row(
            "budget",
            Status.LACKS,
            f"{figures.size(budget)}, but {source(where)} has only {figures.size(limit)}",
            "The smaller one counts, so this budget does nothing: lower it, or remove it.",
        )
    # No lack of this home: counting process by process does as well.
    advice = f"It is counted process by process, without a cgroup of its own: {no_cgroup}." if no_cgroup else ""
    return Row("budget", Status.OK, f"{figures.size(budget)} for Overnight and all its cells", advice)


def private_check(found: Folder, complaint: str) -> Row:
    """complaint: what supervisord would not like about the path."""
    if complaint:
        return Row("home", Status.BAD, complaint, "Commands that need no supervisord work all the same.")
    if found.read_only or not found.writable:
        why = "is on a file system that is mounted read-only" if found.read_only else "cannot be written by you"
        return Row("home", Status.BAD, f"{found.path} {why}", "Choose another home with --home DIR or OVERNIGHT_HOME.")
    if found.owner != found.user:
        return Row(
            "home",
            Status.LACKS,
            f"{found.path} belongs to user {found.owner}, and you are user {found.user}",
            "Files that you make there may be closed to that user: run commands as the user that it belongs to.",
        )
    if found.mode & 0o077:
        return Row(
            "home",
            Status.LACKS,
            f"{found.path} is open to others (mode {found.mode:04o})",
            f"Transcripts and logs are nobody else's business: chmod 700 {found.path}",
        )
    return Row("home", Status.OK, f"{found.path} is private and can be written")


def file_system_check(found: Folder) -> Row:
    kind = found.file_system
    if kind is None:
        return Row("file system", Status.LACKS, "cannot be seen", "var/ belongs on a local disk.")
    if kind in _NETWORK or kind.startswith("fuse."):
        return Row(
            "file system",
            Status.LACKS,
            f"{kind}, which is not local",
            "flock, fsync and SQLite's log may promise less there than on a local disk: never start a second daemon "
            "from another machine, and do not count on the last turn after a power cut. Better a home on a local "
            "disk, with --home DIR.",
        )
    if kind in _VOLATILE:
        return Row(
            "file system",
            Status.LACKS,
            f"{kind}, which is memory",
            "A restart of the machine loses queue and transcripts, and every file there takes memory from the cells.",
        )
    if kind == "overlay":
        advice = "Results go when the container is removed: have var/ on a volume, or copy var/results in time."
        return Row("file system", Status.OK, f"{kind}: a container's own layer", advice)
    return Row("file system", Status.OK, kind)


def disk_check(found: Folder, largest_model_bytes: int) -> Row:
    """largest_model_bytes: what adding the largest known model would take on disk."""
    wanted = max(_SOME_DISK_BYTES, largest_model_bytes)
    room = _disk_status(found.free_bytes, _NO_DISK_BYTES, wanted)
    inodes = Status.OK if found.free_inodes is None else _disk_status(found.free_inodes, _NO_INODES, _SOME_INODES)
    said = f"{figures.size(found.free_bytes)} free"
    said += "" if found.free_inodes is None else f", {found.free_inodes:,} inodes free"
    advice = []
    if room is not Status.OK:
        largest = f"; the largest model takes {figures.size(largest_model_bytes)}" if largest_model_bytes else ""
        advice.append(f"Make room: with a full disk cells stop and wait{largest}.")
    if inodes is not Status.OK:
        advice.append("Few more files can be made there: remove many small ones.")
    return Row("disk", worst([Row("", room, ""), Row("", inodes, "")]), said, " ".join(advice))


def _disk_status(free: int, bad_below: int, lacks_below: int) -> Status:
    return Status.BAD if free < bad_below else Status.LACKS if free < lacks_below else Status.OK


def queue_check(found: QueueFacts) -> Row:
    if found.complaint:
        return Row("queue", Status.BAD, found.complaint, "Nothing starts until that is mended.")
    if found.lost:
        said = f"does not know {unknown_grids.named(found.lost)}: it was lost or emptied"
        return Row("queue", Status.BAD, said, f"{unknown_grids.TODO}.")
    return Row("queue", Status.OK, f"knows {found.grids} grids" if found.grids else "none yet: nothing was submitted")


def descriptors_check(soft: int, hard: int, *, root: bool) -> Row:
    """Limits as getrlimit gives them; -1 is none."""
    need = _SUPERVISORD_FILES
    if soft == -1 or soft >= need:
        return Row("open files", Status.OK, "no limit" if soft == -1 else f"{soft} a process")
    if hard == -1 or hard >= need or root:
        return Row("open files", Status.OK, f"{soft} a process; supervisord raises it to {need}")
    return Row(
        "open files",
        Status.BAD,
        f"{hard} a process at most",
        f"supervisord wants {need} and will not start: raise the limit (ulimit -n, LimitNOFILE=), or lower minfds in "
        "etc/supervisord.conf.",
    )


def running_checks(found: Running, view: View) -> list[Row]:
    """Nothing that runs is no fault; one of the three without the others is."""
    return [_supervisord(found), _daemon(found), _watchdog(found, view)]


def _supervisord(found: Running) -> Row:
    if found.supervisord == "running":
        return Row("supervisord", Status.OK, "running")
    if found.supervisord == "lost":
        advice = "Nobody can talk to it. `overnight up` ends it and starts anew."
        return Row("supervisord", Status.BAD, "runs, but its socket in var/run is gone", advice)
    return Row("supervisord", Status.LACKS, "not running", "`overnight up` starts it, with daemon and watchdog.")


def _daemon(found: Running) -> Row:
    state = found.daemon
    if state is None:
        if found.supervisord == "running":
            advice = "See var/log/daemon.out and daemon.jsonl for why; `overnight up` waits for it and says so too."
            return Row("daemon", Status.BAD, "not running, though supervisord is", advice)
        return Row("daemon", Status.LACKS, "not running")
    if state["age_s"] > _SILENT_S:
        said = f"silent for {figures.duration(state['age_s'])}, pid {state['pid']}"
        return Row("daemon", Status.BAD, said, "It hangs, or its disk does. `overnight up` restarts it.")
    doing = "stopping" if state.get("stopping") else "running"
    holding = state.get("holding")
    return Row("daemon", Status.OK, f"{doing}, pid {state['pid']}" + (f", waiting: {holding}" if holding else ""))


def _watchdog(found: Running, view: View) -> Row:
    now = found.watchdog
    if now is None:
        if found.supervisord == "running" or found.daemon is not None:
            advice = (
                "No new cell starts: supervisorctl -c etc/supervisord.conf restart watchdog; see var/log/watchdog.out."
            )
            return Row("watchdog", Status.BAD, "silent", advice)
        return Row("watchdog", Status.LACKS, "not running")
    said = f"running, pressure {now.level}"
    here = view.whole("limit_bytes")
    if here is not None and here != now.limit_bytes:
        return Row(
            "watchdog",
            Status.LACKS,
            f"{said}; it works below {figures.size(now.limit_bytes)}, seen from here it is {figures.size(here)}",
            "Its limit is what counts. If the settings have changed since it started: "
            "supervisorctl -c etc/supervisord.conf restart all. If not, it lives in another cgroup than this shell.",
        )
    return Row("watchdog", Status.OK, said)
