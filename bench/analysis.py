"""What does analysis cost: one process that loads the encoder once, against one load a conversation; and a long one.

The older harness loaded its embedding model anew after every conversation. Both sides here make the same records of
the same conversations with the same encoder (all-MiniLM-L6-v2, by transformers), one process after the other; only how
often it is loaded differs. Then 10,000 synthetic turns with tfidf, method absolute and method profile.

    python bench/analysis.py [--conversations ../shared/data/upstream] [--turns 10000]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "daemon"))

WORDS_A_TURN = 120
VOCABULARY = 30_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=Path, default=ROOT.parent / "shared/data/upstream", metavar="DIR")
    parser.add_argument("--turns", type=int, default=10_000)
    parser.add_argument("--records", nargs="+", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--long", choices=["absolute", "profile"], help=argparse.SUPPRESS)
    parser.add_argument("--backend", default="embedding", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.records or args.long:
        print(json.dumps(of_files(args.records, args.backend) if args.records else of_long(args.turns, args.long)))
        return 0
    files = sorted(args.conversations.glob("*_run*.json"))
    found: dict[str, Any] = {"bench": "analysis", "conversations": len(files), "turns": args.turns}
    if files:
        once = [run("--records", *map(str, files))]
        each = [run("--records", str(file)) for file in files]
        words = [run("--backend", "tfidf", "--records", *map(str, files))]
        found |= {"once": summed(once), "each": summed(each), "tfidf": summed(words)}
        for name in ("seconds", "cpu_seconds"):
            found[f"{name}_ratio"] = round(found["each"][name] / found["once"][name], 2)
    else:
        print(f"no conversations in {args.conversations}: that part is left out", file=sys.stderr)
    for method in ("absolute", "profile"):
        found[f"long_{method}"] = summed([run("--turns", str(args.turns), "--long", method)])
    show(found)
    print(json.dumps(found))
    return 0


def run(*args: str) -> dict[str, Any]:
    """One process of this file, from its start to its end; it is its own peak that counts."""
    began, spent = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, __file__, *args], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - spent.ru_utime - spent.ru_stime
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": time.monotonic() - began, "cpu_seconds": cpu}


def summed(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "processes": len(runs),
        "seconds": round(sum(each["seconds"] for each in runs), 2),
        "cpu_seconds": round(sum(each["cpu_seconds"] for each in runs), 2),
        "peak_bytes": max(each["peak_bytes"] for each in runs),
        "records": sum(each["records"] for each in runs),
    }


def of_files(files: Sequence[Path], name: str) -> dict[str, Any]:
    from overnight.analysis import conversation
    from overnight.analysis.analyze import analyze
    from overnight.analysis.similarity import open_backend

    backend = open_backend(name)
    records = [analyze(conversation.read_upstream(file), backend) for file in files]
    return {"records": len(records), "peak_bytes": peak_bytes()}


def of_long(turns: int, method: str) -> dict[str, Any]:
    from overnight.analysis.analyze import analyze
    from overnight.analysis.conversation import Conversation, Turn
    from overnight.analysis.similarity import open_backend

    said = tuple(Turn(number=at + 1, text=text, message_index=2 * at) for at, text in enumerate(texts(turns)))
    fields: dict[str, Any] = dict.fromkeys(("grid", "key", "scaffold", "model", "status", "end_reason"), "")
    fields |= {"run": 1, "coords": {}, "system": "", "header": {}, "sha256": "", "source": "", "turns": said}
    record = analyze(Conversation(**fields), open_backend("tfidf"), method)
    return {"records": len(record["series"]) == turns, "peak_bytes": peak_bytes()}


def texts(turns: int) -> list[str]:
    """Words by Zipf's law; a tenth of the turns repeats one of the five before."""
    random.seed(7)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(VOCABULARY)]
    weights = list(accumulate(1 / (rank + 3) for rank in range(VOCABULARY)))
    found: list[str] = []
    for at in range(turns):
        again = 0.6 * turns <= at < 0.7 * turns
        fresh = " ".join(random.choices(words, cum_weights=weights, k=WORDS_A_TURN))
        found.append(found[at - random.randint(1, 5)] if again else fresh)
    return found


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def show(found: dict[str, Any]) -> None:
    names = {
        "once": "embedding, one load",
        "each": "embedding, a load each",
        "tfidf": "tfidf",
        "long_absolute": f"{found['turns']:,} turns, absolute",
        "long_profile": f"{found['turns']:,} turns, profile",
    }
    print(f"{'':<26}{'processes':>10}{'seconds':>10}{'of CPU':>10}{'peak MiB':>10}")
    for key, name in names.items():
        if key in found:
            side = found[key]
            times = f"{side['seconds']:>10.1f}{side['cpu_seconds']:>10.1f}"
            print(f"{name:<26}{side['processes']:>10}{times}{side['peak_bytes'] / 2**20:>10.0f}")
    if "seconds_ratio" in found:
        ratios = f"{found['seconds_ratio']:.1f} times as long ({found['cpu_seconds_ratio']:.1f} times the CPU)"
        print(f"one load a conversation takes {ratios}")
    print(f"a full matrix of {found['turns']:,} turns would take {found['turns'] ** 2 * 4 / 2**20:,.0f} MiB in float32")


if __name__ == "__main__":
    sys.exit(main())
