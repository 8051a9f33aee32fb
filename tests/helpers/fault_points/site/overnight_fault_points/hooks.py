"""Wraps modules as they are imported: none is imported because of this."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from typing import Any

from overnight_fault_points import points

_Hook = Callable[[Any], None]


def install() -> None:
    points.become(_role(sys.orig_argv))
    if points.Self.role:
        sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type] - what the import system calls is there
        os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)


def _role(argv: list[str]) -> str:
    """Of which kind this process is; "" for everybody who is none of ours."""
    names = [word.rpartition("/")[2] for word in argv]
    if "supervisor.supervisord" in names:
        return "supervisord"
    if "overnight.warm.server" in names:
        return "warm"
    if "overnight-watchdog" in names or "overnight_watchdog" in names:
        return "watchdog"
    if "overnight" in names:
        return "daemon" if "daemon" in names else "cli"
    return ""


class _Finder:
    """Finds what the usual finder finds, and has the module wrapped once it is executed."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        hook = HOOKS.get(name)
        spec = None if hook is None else PathFinder.find_spec(name, path, target)
        if hook is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def executed(module: Any) -> None:
            execute(module)
            hook(module)

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


def _before_fork() -> None:
    if points.Self.child is not None:
        points.reach("fork.before")


def _in_parent() -> None:
    if points.Self.child is not None:
        points.Self.child = None
        points.reach("fork.parent")


def _in_child() -> None:
    if points.Self.child is not None:
        points.become(*points.Self.child)
        points.reach("fork.child")


def around(owner: Any, name: str, point: str) -> None:
    """Reach `point`.before and .after each call of a method or function."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **named: Any) -> Any:
        points.reach(f"{point}.before")
        result = original(*args, **named)
        points.reach(f"{point}.after")
        return result

    setattr(owner, name, wrapped)


# -- the file layer and the queue -----------------------------------------------------------------------------


def _durable(module: Any) -> None:
    from overnight_fault_points.disk import traced

    module.calls = traced(module.Calls)


def _connection(module: Any) -> None:
    from contextlib import contextmanager

    original = module.Database.write

    @contextmanager
    def write(self: Any) -> Any:
        what = sys._getframe(2).f_code.co_name  # which of the queue's methods it is that opens this
        with original(self) as connection:
            points.reach(f"commit.{what}.begun")
            yield connection
            points.reach(f"commit.{what}.before")
        points.reach(f"commit.{what}.after")

    module.Database.write = write


# -- the dispatcher -------------------------------------------------------------------------------------------


def _client(module: Any) -> None:
    around(module.WarmServer, "__init__", "spawn")


def _crew(module: Any) -> None:
    around(module.Crew, "_server_gone", "reap.server")
    around(module.Crew, "_part", "reap.cell")


def _signals(module: Any) -> None:
    original = module.Handle._send

    def send(self: Any, number: Any) -> Any:
        points.reach(f"signal.{int(number)}.before")
        told = original(self, number)
        points.reach(f"signal.{int(number)}.after")
        return told

    module.Handle._send = send


def _protocol(module: Any) -> None:
    original = module.Channel.send

    def send(self: Any, kind: str, **fields: Any) -> Any:
        points.reach(f"tell.{kind}.before")
        result = original(self, kind, **fields)
        points.reach(f"tell.{kind}.after")
        return result

    module.Channel.send = send


# -- warm servers, cells and commands -------------------------------------------------------------------------


def _child(module: Any) -> None:
    original_fork, original_run = module.fork, module._run

    def fork(channel: Any, engine: Any, message: Any, *rest: Any, **named: Any) -> Any:
        spec = message["spec"]
        grid = message["folder"].rstrip("/").split("/")[-2]
        role = "runner" if spec["kind"] == "command" else "cell"
        points.Self.child = (role, f"{grid}/{spec['key']}")
        return original_fork(channel, engine, message, *rest, **named)

    def run(*args: Any, **named: Any) -> Any:
        points.reach("gate.passed")
        status = original_run(*args, **named)
        points.reach("exit.before")
        return status

    module.fork, module._run = fork, run
    around(module, "_settle", "settle")
    around(module.Child, "let_go", "gate")
    around(os, "wait4", "reap")


def _command_start(module: Any) -> None:
    original_start, original_exec = module.start, os.execvpe

    def start(*args: Any, **named: Any) -> Any:
        points.Self.child = ("command", points.Self.label)
        started = original_start(*args, **named)
        points.begun("R", points.Self.label, os.getppid())
        points.reach("exec.after")
        return started

    def execvpe(*args: Any) -> Any:
        points.reach("exec.before")
        original_exec(*args)

    module.start = start
    os.execvpe = execvpe  # type: ignore[assignment]
    around(module, "prepare", "prepare")


def _command(module: Any) -> None:
    around(module._Runner, "attend", "attend")
    around(module._Runner, "end", "end")


def _idle_loop(module: Any) -> None:
    original = module._loop

    def loop(transcript: Any, session: Any, *rest: Any) -> Any:
        label, generate = points.Self.label, session.generate
        points.begun("R", label, os.getppid())

        def begun(**how: Any) -> Any:
            points.begun("B", label, transcript.turns + 1)
            points.reach("turn.begun")
            turn = generate(**how)
            points.reach("turn.made")
            return turn

        session.generate = begun
        return original(transcript, session, *rest)

    module._loop = loop
    around(module, "_replay_turn", "replay")


# -- supervisord and the watchdog -----------------------------------------------------------------------------


def _supervisor_options(module: Any) -> None:
    original_fork = module.ServerOptions.fork

    def fork(self: Any) -> Any:
        points.Self.child = ("program", "-")
        return original_fork(self)

    module.ServerOptions.fork = fork
    original_exec = module.ServerOptions.execve

    def execve(self: Any, *args: Any) -> Any:
        points.reach("exec.before")
        return original_exec(self, *args)

    module.ServerOptions.execve = execve


def _supervisor_process(module: Any) -> None:
    around(module.Subprocess, "finish", "reap")


def _act(module: Any) -> None:
    original = module.LinuxKernel.send

    def send(self: Any, pidfd: int, number: int) -> Any:
        if not number:
            return original(self, pidfd, number)  # the rehearsal
        points.reach(f"signal.{int(number)}.before")
        told = original(self, pidfd, number)
        points.reach(f"signal.{int(number)}.after")
        return told

    module.LinuxKernel.send = send


def _scribe(module: Any) -> None:
    around(module.PatientRing, "write", "verdict")


HOOKS: dict[str, _Hook] = {
    "overnight.durable": _durable,
    "overnight.queue.connection": _connection,
    "overnight.warm.client": _client,
    "overnight.warm.protocol": _protocol,
    "overnight.warm.child": _child,
    "overnight.dispatch.crew": _crew,
    "overnight.dispatch.signals": _signals,
    "overnight.cells.command": _command,
    "overnight.cells.command_start": _command_start,
    "overnight.cells.idle_loop": _idle_loop,
    "overnight_watchdog.act": _act,
    "overnight_watchdog.scribe": _scribe,
    "supervisor.options": _supervisor_options,
    "supervisor.process": _supervisor_process,
}
