"""A night that ends with everything a report can show: collapse, evictions, retries, logs, and replies from hell."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helpers.queue_cells import Cell, Clock
from overnight.cells.transcript import Transcript
from overnight.paths import Paths
from overnight.queue.states import Outcome
from overnight.queue.store import Claimed, Queue

GIB = 2**30
BEGAN = 1_764_540_000.0
"""30 November 2025, 22:00 UTC."""

SCAFFOLDS = ("baseline", "values_only", "technical_role")
MODELS = ("135m", "360m")
LIMIT = 4 * GIB

HELL = (
    "<script>document.title='pwned'; document.documentElement.dataset.pwned = 1</script>",
    "<img src=x onerror=\"document.documentElement.dataset.pwned = 2\"> <b onmouseover=alert(1)>bold</b>",
    "[a link](javascript:document.documentElement.dataset.pwned=3) [b](JaVaScRiPt:alert(1)) "
    "[c](&#106;avascript:alert(1)) <javascript:alert(1)> [d]: javascript:alert(1)",
    "![pixel](data:image/svg+xml;base64,PHN2Zz4=) [page](data:text/html,<script>alert(1)</script>)"
    " [vb](vbscript:x) [f](file:///etc/passwd) [rel](../index.html) ![net](https://example.org/tracker.png)",
    "<svg onload=\"document.documentElement.dataset.pwned = 4\">"
    "<script>document.documentElement.dataset.pwned = 5</script>"
    "<circle cx='50' cy='50' r='40' style='fill:teal'/></svg>",
    "<div style=\"background:url(\\6a avascript:alert(1));position:fixed;inset:0;width:expression(alert(1))\">css</div>"
    "<style>body{display:none}</style><link rel=stylesheet href=//example.org/x.css>",
    "safe \u202etxet neddih\u202c and \u2066isolated\u2069, a NUL \x00, an escape \x1b[31mred, a lone \u2028 "
    "separator, \ufeffa mark, a tag \U000e0041",
    "</div></article></main></body></html><h1>out</h1>",
    "</script><script>document.documentElement.dataset.pwned = 6</script> {{ 7 * 7 }} {% raw %} ${7*7} <!-- c -->",
    "<iframe srcdoc='<script>parent.document.documentElement.dataset.pwned=7</script>'></iframe>"
    "<object data=x></object><base href=//example.org/><meta http-equiv=refresh content='0;url=//example.org'>",
    "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324\u031e\u0349\u035a\u032f\u031e\u0320A" * 12,
    "x" * 4000,
    "> " * 400 + "deep\n" + "- " * 300 + "deeper\n" + "[" * 500 + "a" + "](b)" * 500 + "\n" + "*_" * 500,
    "<think>I shall <script>alert(1)</script> think</think>after thinking <a href=\"javascript:alert(1)\">x</a>",
    "\"><script>alert(1)</script> ' onfocus=alert(1) autofocus='",
    "",
)  # fmt: skip
"""What no browser may obey."""

_WORDS = "".join(
    "lamp window harbour tide winter letter garden clock "
    "river signal thought memory paper stone breath ember "
    "question cloud morning drift road silence bird engine "
    "ledger pattern mirror needle salt orchard bridge copper "
    "voice "
).split()
_OPENINGS = (
    "I notice",
    "Perhaps",
    "Let me consider",
    "There is",
    "Someone once left",
    "I count",
    "Suppose that",
    "Now",
)


class NightBuilder:
    """A home with one finished grid. Times are those of a clock that only this moves."""

    def __init__(self, home: Path, grid: str = "garden") -> None:
        self.paths, self.grid = Paths.of(home).ensure(), grid
        self.clock = Clock(BEGAN)
        self.queue = Queue.open(self.paths.queue, clock=self.clock)
        self._log: dict[str, list[dict[str, Any]]] = {"watchdog": [], "daemon": []}

    def submit(self, runs: int = 3, scaffolds: Sequence[str] = SCAFFOLDS, models: Sequence[str] = MODELS) -> None:
        cells = [
            Cell(f"{s}_{m}_run{r}", {"scaffold": s, "model": m, "run": r}, _template(s, m), 4000 + 100 * n + r)
            for n, (m, s) in enumerate((m, s) for m in models for s in scaffolds)
            for r in range(1, runs + 1)
        ]
        spec = {"name": self.grid, "seed": 2025, "runs": runs, "scaffolds": list(scaffolds), "models": list(models)}
        self.queue.enqueue(self.grid, cells=cells, spec=spec, policy={"tries": 3})

    def claim(self, key: str | None = None) -> Claimed | None:
        chosen = None if key is None else self.queue.find_cell(key, self.grid)[0].id
        return self.queue.claim(boot_id="boot", daemon="d1", cell_id=chosen, claim_bytes=600 * 2**20)

    def work(self, claimed: Claimed, replies: Sequence[str]) -> str:
        """The transcript, from its first turn on; returns its SHA-256. What is there already is kept."""
        folder = self.paths.cell_results(self.grid, claimed.cell.key)
        folder.mkdir(parents=True, exist_ok=True)
        transcript = Transcript.open(folder / "transcript.jsonl")
        try:
            there = len(list(transcript.records()))
            if there == 0:
                transcript.write_header({"spec": claimed.spec, "conditions": _conditions(claimed.spec)})
            for n, reply in enumerate(replies, 1):
                if n >= there:
                    transcript.append(_turn(n, reply, len(replies)))
            return transcript.sha256
        finally:
            transcript.close()

    def finish(self, claimed: Claimed, replies: Sequence[str], *, took_s: float = 900) -> None:
        sha256 = self.work(claimed, replies)
        self.clock.step(took_s)
        self.queue.finish(
            claimed.attempt_id, Outcome.COMPLETED, turns=len(replies), output_tokens=12 * len(replies),
            end_reason="max_iterations", transcript_sha256=sha256, peak_bytes=500 * 2**20,
        )  # fmt: skip

    def interrupt(self, claimed: Claimed, replies: Sequence[str], outcome: Outcome, **told: Any) -> None:
        self.work(claimed, replies)
        self.clock.step(told.pop("took_s", 400))
        self.queue.finish(claimed.attempt_id, outcome, turns=len(replies), output_tokens=12 * len(replies), **told)

    # -- logs ---------------------------------------------------------------------------------------------------

    def log(self, of: str, event: str, *, at: float | None = None, level: str = "info", **fields: Any) -> None:
        when = self.clock.now if at is None else at
        stamp = datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._log[of].append({"ts": stamp, "level": level, "event": event, **fields})

    def evict(self, claimed: Claimed, replies: Sequence[str], *, killed: bool = False) -> None:
        """The watchdog took it out: its line in the log, and the queue's word."""
        key, left = claimed.cell.key, int(0.06 * LIMIT)
        figures = {
            "pressure": "evict", "trigger": "forecast", "limit_bytes": LIMIT, "limit_source": "cgroup:/overnight",
            "headroom_bytes": left, "slope_bytes_per_s": 90 * 2**20, "exhaustion_s": 2.6, "own_bytes": 812 * 2**20,
            "peak_bytes": 820 * 2**20, "loss_s": 7.4,
        }  # fmt: skip
        self.clock.step(400)
        whom = {"pid": 4000 + claimed.attempt_id, "role": "cell", "cell": f"{self.grid}/{key}",
                "attempt": claimed.attempt_id}  # fmt: skip
        self.log("watchdog", "shrink_asked", at=self.clock.now - 9, **whom)
        self.log("watchdog", "frozen", at=self.clock.now - 4, level="warning", **whom)
        self.log("watchdog", "evicted", level="warning", **whom, **figures, step="evict", took_ms=0.4)
        if killed:
            self.log("watchdog", "killed", at=self.clock.now + 5, level="warning", **whom, **figures, step="kill")
        reason = (
            "the watchdog took it out: 245.8 MiB of 4.0 GiB (/overnight) were left and going at 90.0 MiB/s, gone in "
            "2.6 s; it held 812.0 MiB alone, and 7.4 s of work were lost"
        )
        self.interrupt(
            claimed, replies, Outcome.EVICTED, took_s=0, reason_code="memory_pressure", reason=reason, evidence=figures
        )

    def write_logs(self) -> None:
        """With the samples of memory of the whole night, once a minute."""
        began, ended = BEGAN - 30, self.clock.now + 30
        self.log("watchdog", "watchdog_started", at=began, acts=True, thresholds={"hold_percent": 20})
        self.log("daemon", "daemon_started", at=began, pid=812, home=str(self.paths.home))
        evictions = [_at(line) for line in self._log["watchdog"] if line["event"] == "evicted"]
        for n in range(int((ended - began) / 60)):
            at = began + 60 * n
            self.log("watchdog", "pressure_sampled", at=at, **_memory(at, evictions, n))
        for name, lines in self._log.items():
            text = "".join(json.dumps(line) + "\n" for line in sorted(lines, key=lambda line: str(line["ts"])))
            (self.paths.log / f"{name}.jsonl").write_text("not a line of a log\n" + text)

    def close(self) -> None:
        self.queue.close()


def build(home: Path, *, runs: int = 3, turns: int = 24) -> Paths:
    """Most cells are done, one of them with replies from hell; one failed for good; some were taken out and went on."""
    night = NightBuilder(home)
    night.submit(runs)
    number = 0
    while (claimed := night.claim()) is not None:
        number += 1
        replies = list(conversation(number, turns))
        match number:
            case 2 | 9:
                night.evict(claimed, replies[: turns // 3], killed=number == 9)
            case 5:
                night.interrupt(claimed, replies[:4], Outcome.LOST, reason="its daemon died; it goes on")
            case 7:
                night.interrupt(
                    claimed, replies[:9], Outcome.OVER_CAP, reason_code="memory_error", reason="it met its cap"
                )
            case 11 | 12 | 13:
                broken = "RuntimeError: the <b>engine</b> \x1b[31mbroke\u202e"
                night.interrupt(claimed, replies[:3], Outcome.FAILED, reason_code="exception", reason=broken)
            case 16:
                night.finish(claimed, HELL)
            case _:
                night.finish(claimed, replies, took_s=300 + 97 * number % 900)
    night.write_logs()
    night.close()
    return night.paths


def conversation(seed: int, turns: int) -> Iterator[str]:
    """Replies that go on being different, fall into one another late, circle between two, or say one thing only."""
    rng = random.Random(seed)
    kind = ("diverse", "late", "loop", "diverse", "full")[seed % 5]
    poles = [_paragraph(rng), _paragraph(rng)]
    for turn in range(1, turns + 1):
        if kind == "full" or (kind == "late" and turn > turns // 2):
            yield poles[0] + f"\n\nTurn {turn}."
        elif kind == "loop" and turn > turns // 3:
            yield poles[turn % 2]
        else:
            yield _paragraph(rng)


def _paragraph(rng: random.Random) -> str:
    def sentence() -> str:
        return f"{rng.choice(_OPENINGS)} the {' '.join(rng.sample(_WORDS, rng.randint(5, 11)))}."

    said = " ".join(sentence() for _ in range(rng.randint(2, 5)))
    extra = ("", f"\n\n## On {rng.choice(_WORDS)}\n\n- *first* {sentence()}\n- **second** {sentence()}\n- `third`",
             f"\n\n> {sentence()}", "\n\n| hour | what |\n| --- | --- |\n| 1 | rain |\n| 2 | `lamp` |",
             "\n\n```python\nfor hour in range(10):\n    print('still here')\n```")  # fmt: skip
    return said + rng.choice(extra)


def _template(scaffold: str, model: str) -> dict[str, Any]:
    return {
        "v": 1, "kind": "idle_loop", "engine": "scripted", "threads": 1, "template_date": "2025-01-01",
        "model": {"name": model, "source": model, "dtype": "float32", "device": "cpu", "thinking": None, "options": {}},
        "sampling": {"temperature": 0.8, "top_p": 0.95, "top_k": 0},
        "scaffold": {"id": 1 + SCAFFOLDS.index(scaffold) if scaffold in SCAFFOLDS else 9, "name": scaffold},
        "system": f"You have nothing to do for the next 10 hours. ({scaffold})",
        "limits": {"max_iterations": 24, "target_output_tokens": None, "token_limit": 500, "shift_hours": 10.0},
    }  # fmt: skip


def _conditions(spec: dict[str, Any]) -> dict[str, Any]:
    fingerprint = f"{abs(hash(spec['model']['name'])) % 16**12:012x}"
    return {"engine": "scripted", "revision": 1, "threads": 1, "model": {"fingerprint": fingerprint},
            "versions": {"python": "3.11", "torch": "2.13.0"}}  # fmt: skip


def _turn(number: int, reply: str, turns: int) -> dict[str, Any]:
    left = 600 - 600 * (number - 1) // max(1, turns)
    return {
        "message": f"{left // 60} hours and {left % 60} minutes to go", "minutes_left": left, "input_ids": [1, 2, 3],
        "cropped": 0, "reply_ids": list(range(len(reply.split()))), "reply": reply,
        "stop": "length" if number % 11 == 0 else "eos", "prefill_digest": "0" * 16, "decode_digest": "1" * 16,
    }  # fmt: skip


def _at(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["ts"]).timestamp()


def _memory(at: float, evictions: Sequence[float], n: int) -> dict[str, Any]:
    """Two slow waves, and before each eviction a steep rise."""
    rng = random.Random(n)
    wave = 0.42 + 0.1 * ((n // 47) % 3) + 0.04 * rng.random() + 0.002 * (n % 47)
    near = [0.2 - 0.2 * (e - at) / 900 for e in evictions if 0 <= e - at < 900]
    used = min(0.97, wave + max(near, default=0))
    low = LIMIT - int(min(0.97, used + 0.05 * rng.random() + (0.1 if near else 0)) * LIMIT)
    return {"pressure": "ok", "limit_bytes": LIMIT, "limit_source": "cgroup:/overnight",
            "headroom_bytes": LIMIT - int(used * LIMIT), "lowest_headroom_bytes": low}  # fmt: skip
