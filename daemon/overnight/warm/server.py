"""A warm server: imports an engine and loads a model once, then forks one child for every cell.

    load -> (a message: fork, let go, stop) | (a child ended: tell) | (time passes: weigh the children) -> again

Started by the dispatcher as `python -m overnight.warm.server FD PARENT_PID`. It dies with the dispatcher, its children
die with it: nothing is lost by that, since every finished turn is on disk.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from overnight import memory, procfs
from overnight.cells import command_start, command_tree
from overnight.engines import registry
from overnight.engines.base import Engine
from overnight.errors import UserError
from overnight.warm import child
from overnight.warm.protocol import Channel, Closed, Message

OOM_SCORE_ADJ = 500
"""Above the daemon's, below a cell's: losing a warm server costs a load, losing a cell costs a turn."""
WEIGH_S, WEIGH_CALM_S = 0.05, 0.2
"""How often the children are weighed while one of them changes, and while none does. A prefill's spike takes longer."""
PAUSE_LOOKS, LONGEST_PAUSE_S = 20, 5.0
"""Between two looks, so many times what the last one took: weighing is to cost a twentieth of a processor at most.
Without cgroups a look reads some files of each process, and without CONFIG_PROC_CHILDREN of all the machine's."""
TELL_S = 0.2
TELL_BYTES = 1 << 20
"""A change of so much is news to the dispatcher, so often at most."""
NEAR_CAP = 0.6
"""Beyond this share of its (first) cap every change is told at once: there may be room to extend it."""


class Server:
    """The loop around one loaded engine."""

    def __init__(self, channel: Channel, engine: Engine) -> None:
        self._channel = channel
        self._engine = engine
        self._weigh_s = self._pause_s = WEIGH_S
        self._weighed_s = self._told_s = 0.0
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ)
        self._children: dict[int, child.Child] = {}  # by attempt
        self._running = True

    def serve(self) -> None:
        while self._running:
            for key, _ in self._selector.select(self._pause_s if self._children else None):
                if key.data is None:
                    self._obey(self._channel.receive())
                else:
                    self._reap(key.data)
            self._weigh()

    def _obey(self, message: Message | None) -> None:
        if message is None:
            return
        match message["kind"]:
            case "fork":
                self._fork(message)
            case "go":
                if (waiting := self._children.get(message["attempt"])) is not None:
                    waiting.let_go()
            case "stop":
                self._running = False

    def _fork(self, message: Message) -> None:
        try:
            born = child.fork(self._channel, self._engine, message, tuple(self._children.values()))
        except OSError as error:
            self._channel.send("fork_failed", attempt=message["attempt"], error=str(error))
            return
        self._children[born.attempt] = born
        self._selector.register(born.pidfd, selectors.EVENT_READ, born)
        self._channel.send(
            "forked",
            attempt=born.attempt,
            pid=born.pid,
            start_ticks=procfs.start_ticks(born.pid),
            cgroup_error=born.cgroup_error,
        )

    def _reap(self, ended: child.Child) -> None:
        _, status, usage = os.wait4(ended.pid, 0)
        if os.WIFSIGNALED(status):
            command_tree.end_strangers({each.pid for each in self._children.values()})
        self._selector.unregister(ended.pidfd)
        ended.close()
        del self._children[ended.attempt]
        self._channel.send(
            "exited",
            attempt=ended.attempt,
            status=status,
            max_rss_bytes=usage.ru_maxrss * 1024,
            peak_bytes=ended.meter.peak_bytes,
        )

    def _weigh(self) -> None:
        """Look at what the children hold, and tell what has changed: more often while something does."""
        now = time.monotonic()
        if not self._children or now - self._weighed_s < self._pause_s:
            return
        changes, took_s = False, 0.0
        for each in self._children.values():
            before = each.meter.bytes
            changes = abs(each.meter.look() - before) > TELL_BYTES or changes
            took_s += each.meter.took_s
        self._weighed_s = now + took_s
        self._weigh_s = WEIGH_S if changes else min(WEIGH_CALM_S, self._weigh_s + 0.01)
        self._pause_s = max(self._weigh_s, min(PAUSE_LOOKS * took_s, LONGEST_PAUSE_S))
        due = now - self._told_s >= TELL_S
        if due:
            self._told_s = now
        for each in self._children.values():
            meter = each.meter
            near = each.cap_bytes is not None and meter.bytes > NEAR_CAP * each.cap_bytes
            if (due or near) and (abs(meter.bytes - meter.told_bytes) > TELL_BYTES or not meter.refaults_told):
                told = {"bytes": meter.bytes, "peak_bytes": meter.peak_bytes}
                told["refault_bytes_per_s"] = meter.refault_bytes_per_s
                if self._channel.offer("memory", attempt=each.attempt, **told):
                    meter.told_bytes, meter.refaults_told = meter.bytes, True


def load(channel: Channel, message: Message) -> Engine | None:
    """Load what the first message asks for; None after a refusal."""
    began = time.monotonic()
    if message["warm"]:
        os.environ.update(ENVIRONMENT)
    else:
        # Commands keep the environment as it is; who survives his runner becomes our child, and is ended.
        command_start.adopt_orphans()
    try:
        engine = registry.make(message["warm"], message["store"])
        engine.load()
        threads = _threads()
        if len(threads) > 1:
            raise UserError(f"cannot fork safely: these threads are running: {', '.join(threads)}")
    except UserError as error:
        channel.send("refused", error=str(error), code="model")
        return None
    except MemoryError:
        channel.send("refused", error="loading the model met a memory limit (MemoryError)", code="memory")
        return None
    except Exception as error:  # noqa: BLE001 - whatever a model's own code raises becomes one line for people
        first = (str(error).splitlines() or [""])[0][:300]
        channel.send("refused", error=f"loading failed: {type(error).__name__}: {first}", code="load")
        return None
    gc.collect()
    gc.freeze()  # children must not copy the parent's pages only because a collection touched them
    _handle_shrinking(channel)
    channel.send(
        "loaded",
        load_s=round(time.monotonic() - began, 3),
        promise=engine.promise,
        shrinks=engine.shrinks,
        freezes=engine.freezes,
        threads=threads,
        bytes=memory.anonymous_bytes(),
    )
    return engine


def _handle_shrinking(channel: Channel) -> None:
    """SIGUSR1 from here on: collect and trim. At once: nothing that this process does between two instructions of the
    interpreter minds it, a fork has the signal blocked, and a child installs its own handler before it unblocks it."""

    def shrink(_number: int, _frame: Any) -> None:
        before = memory.anonymous_bytes()
        memory.give_back()
        channel.offer("trimmed", before_bytes=before, after_bytes=memory.anonymous_bytes())

    signal.signal(signal.SIGUSR1, shrink)


def _threads() -> list[str]:
    """Names of the threads of this process, as the kernel has them."""
    names = []
    for task in sorted(Path("/proc/self/task").iterdir(), key=lambda path: int(path.name)):
        try:
            names.append((task / "comm").read_text().strip())
        except OSError:
            continue
    return names


def _settle(parent: int) -> None:
    """Become a well-behaved process before anything heavy is imported."""
    procfs.die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the dispatcher
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # its default action kills; while loading there is nothing to give
    # A library that warns that this process forks must not be heard in every cell.
    warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    except OSError:
        pass


ENVIRONMENT: dict[str, Any] = {
    "TOKENIZERS_PARALLELISM": "false",  # its thread pool does not survive a fork
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OMP_NUM_THREADS": "1",  # a thread pool in the parent would be missing in the child
    "MKL_NUM_THREADS": "1",
}


def main(argv: list[str]) -> int:
    fd, parent = int(argv[0]), int(argv[1])
    _settle(parent)
    channel = Channel(socket.socket(fileno=fd))
    os.set_inheritable(fd, False)
    try:
        first = channel.receive()
        engine = load(channel, first) if first is not None else None
        if engine is None:
            return 1
        Server(channel, engine).serve()
    except Closed:
        pass  # the dispatcher is gone, and takes us with it
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
