"""A process that uses a queue until it is killed or there is nothing left. Each line is written after a commit.

python -m helpers.queue_worker drain|churn|open PATH SEED
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from overnight.queue.states import ENDED, RETRYABLE, Outcome
from overnight.queue.store import Queue


def start(mode: str, path: Path, seed: int = 0) -> subprocess.Popen[str]:
    """A worker in a process of its own; what it says comes by its stdout."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "helpers.queue_worker", mode, str(path), str(seed)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def drain(queue: Queue, dice: random.Random) -> None:
    """Claim and finish until nothing is left, with a little work between, so that others have their turn."""
    while claimed := queue.claim(boot_id="boot", daemon=str(os.getpid())):
        say("claimed", claimed.cell.id, claimed.attempt_id)
        time.sleep(dice.uniform(0, 0.002))
        queue.finish(claimed.attempt_id, Outcome.COMPLETED)
        say("finished", claimed.attempt_id, Outcome.COMPLETED)


def churn(queue: Queue, dice: random.Random) -> None:
    """Everything that changes a queue, for ever."""
    for cell in queue.recover():
        say("recovered", cell)
    open_attempts: list[int] = []
    while True:
        claimed = queue.claim(boot_id="boot", daemon=str(os.getpid()))
        if claimed is not None:
            open_attempts.append(claimed.attempt_id)
            say("claimed", claimed.cell.id, claimed.attempt_id)
        if claimed is None or len(open_attempts) > dice.randrange(4):
            while open_attempts:
                attempt = open_attempts.pop()
                outcome = dice.choice(list(Outcome))
                queue.finish(attempt, outcome, turns=dice.randrange(9), delay_s=dice.choice((0.0, 0.01)))
                say("finished", attempt, outcome)
        if claimed is None:
            queue.cancel([dice.randrange(1, 30) for _ in range(3)])
            queue.retry(queue.cell_ids("night", RETRYABLE))
            if len(list(queue.cell_ids("night", ENDED))) > 20:
                queue.reset("night")


def main() -> None:
    mode, path, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    with Queue.open(path) as queue:
        say("open")
        if mode == "drain":
            sys.stdin.readline()  # all begin at once
            drain(queue, random.Random(seed))
        elif mode == "churn":
            churn(queue, random.Random(seed))


if __name__ == "__main__":
    main()
