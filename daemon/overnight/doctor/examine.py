"""All checks of `overnight doctor`, in the order in which they are shown."""

from __future__ import annotations

import os

from overnight.doctor import facts, home_checks, memory_checks, model_checks, models, watchdog_view
from overnight.doctor.row import Row
from overnight.paths import Paths


def examine(paths: Paths) -> list[Row]:
    """Look at the machine and at this home, and say what was found. Raises OSError when var/ vanishes meanwhile."""
    view = watchdog_view.ask(paths.home)
    settings = facts.settings(paths.config)
    folder = facts.folder(paths.var)
    versions = facts.engine_versions()
    store = models.look(paths)
    soft, hard = facts.descriptors()
    room = model_checks.room_check(store, view.whole("limit_bytes"))
    return [
        *memory_checks.memory_checks(view, facts.psi(), paths.home),
        home_checks.settings_check(settings),
        *([] if settings.complaint else [home_checks.budget_check(settings, view, facts.no_cgroup(paths))]),
        home_checks.private_check(folder, facts.spelling(paths)),
        home_checks.file_system_check(folder),
        home_checks.disk_check(folder, model_checks.largest_disk_bytes(store)),
        home_checks.queue_check(facts.queue(paths)),
        home_checks.descriptors_check(soft, hard, root=os.geteuid() == 0),
        *home_checks.running_checks(facts.running(paths), view),
        model_checks.engine_check(versions),
        model_checks.store_check(store),
        model_checks.grid_check(store, versions),
        *([] if room is None else [room]),
    ]
