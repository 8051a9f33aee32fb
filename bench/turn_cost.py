"""What does a conversation cost by this engine, against the usual way?

The usual way: at each turn the whole conversation is rendered, tokenised and prefilled again through
`model.generate(use_cache=True)`. Each side runs in a fresh process of its own, one after the other, with one thread,
the same model, messages, sampling settings and number of tokens (stop tokens are off: both decode equally many).

    python bench/turn_cost.py [--turns 20] [--token-limit 64] [--store var/models]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "daemon"))

MODEL = "smollm2-135m-instruct"
SYSTEM = "You have nothing to do for the next 10 hours. Nobody will ask for anything. Use the time however you like."
SAMPLING = {"temperature": 0.8, "top_p": 0.95, "top_k": 0}
POLL_S = 0.02
SIDES = {"overnight": "this engine", "generate": "generate, all again"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--token-limit", type=int, default=64)
    parser.add_argument("--store", type=Path, default=ROOT / "var" / "models")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side is not None:
        run_side(args)
        return 0
    from overnight.engines import model_store
    from overnight.errors import UserError

    try:
        model_store.ensure(args.store, MODEL, "float32")
    except UserError as error:
        print(error, file=sys.stderr)
        return UserError.exit_code
    found = {side: measure(side, args) for side in SIDES}
    report(found, args)
    return 0


def measure(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one side in a fresh process and watch its anonymous memory from outside."""
    command = [sys.executable, __file__, "--side", side, "--store", str(args.store)]
    command += ["--turns", str(args.turns), "--token-limit", str(args.token_limit)]
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "said")
        with said.open("w") as out:
            process = subprocess.Popen(command, stdout=out)
        loaded = peak = 0
        while process.poll() is None:
            if said.stat().st_size:  # its first line says that it is loaded
                anonymous = status(process.pid, "RssAnon")
                loaded = loaded or anonymous
                peak = max(peak, anonymous)
            time.sleep(POLL_S)
        if process.returncode != 0:
            raise SystemExit(f"{side} ended with exit status {process.returncode}")
        figures = json.loads(said.read_text().splitlines()[-1])
    return {**figures, "anonymous_loaded": loaded, "anonymous_peak": peak}


def status(pid: int | str, field: str) -> int:
    """One figure of /proc/PID/status in bytes; 0 when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def run_side(args: argparse.Namespace) -> None:
    began = time.monotonic()
    turn = (load_overnight if args.side == "overnight" else load_generate)(args)
    load_s = time.monotonic() - began
    load_peak = status("self", "VmHWM")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts afresh from here
    print("loaded", flush=True)
    times, tokens = [], 0
    for number in range(args.turns):
        began = time.monotonic()
        tokens = turn(f"{10 - number // 2} hours and {30 * (number % 2)} minutes to go", number)
        times.append(time.monotonic() - began)
    found = {"load_s": load_s, "turns_s": times, "tokens": tokens, "load_peak": load_peak}
    print(json.dumps({**found, "turns_peak": status("self", "VmHWM")}))


def load_overnight(args: argparse.Namespace) -> Any:
    """A function (message, number) -> tokens of the conversation so far, by this engine."""
    from overnight.engines.registry import make

    warm = {"engine": "transformers", "source": MODEL, "dtype": "float32", "device": "cpu", "options": {}}
    engine: Any = make(warm, str(args.store))
    engine.load()
    engine._stop_ids = frozenset()
    spec = {"system": SYSTEM, "template_date": "2025-01-01", "model": {"thinking": None}, "sampling": SAMPLING}
    session = engine.open(spec, threads=1)

    def turn(message: str, number: int) -> int:
        held = session.prepare(message)
        return int(held + len(session.generate(token_limit=args.token_limit, seed=number).reply_ids))

    return turn


def load_generate(args: argparse.Namespace) -> Any:
    """The same by the usual way."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OPENBLAS_NUM_THREADS="1")
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = str(args.store / f"{MODEL}--float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    messages = [{"role": "system", "content": SYSTEM}]

    def turn(message: str, number: int) -> int:
        messages.append({"role": "user", "content": message})
        given = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        torch.manual_seed(number)
        with torch.inference_mode():
            out = model.generate(
                **given, do_sample=True, use_cache=True, max_new_tokens=args.token_limit, pad_token_id=0, **SAMPLING
            )
        reply = out[0, given["input_ids"].shape[1] :]
        assert len(reply) == args.token_limit
        messages.append({"role": "assistant", "content": tokenizer.decode(reply)})
        return int(out.shape[1])

    return turn


def report(found: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    ours, theirs = found["overnight"], found["generate"]
    rows = [("", SIDES["overnight"], SIDES["generate"], "ratio")]

    def row(what: str, unit: str, figure: Any) -> None:
        left, right = figure(ours), figure(theirs)
        rows.append((what, f"{left:.2f} {unit}", f"{right:.2f} {unit}", f"{right / left:.2f}"))

    def mib(key: str) -> Any:
        return lambda side: side[key] / 2**20

    row(f"{args.turns} turns", "s", lambda side: sum(side["turns_s"]))
    row("last turn", "s", lambda side: side["turns_s"][-1])
    row("peak RSS in turns", "MiB", mib("turns_peak"))
    row("peak RSS in loading", "MiB", mib("load_peak"))
    row("anonymous, loaded", "MiB", mib("anonymous_loaded"))
    row("anonymous, peak", "MiB", mib("anonymous_peak"))
    row("anonymous, for turns", "MiB", lambda side: (side["anonymous_peak"] - side["anonymous_loaded"]) / 2**20)
    row("tokens in the end", "", lambda side: side["tokens"])
    for name, left, right, ratio in rows:
        print(f"{name:<22}{left:>18}{right:>22}{ratio:>9}")
    seconds = {side: round(sum(figures["turns_s"]), 2) for side, figures in found.items()}
    memory = {
        side: {key: figures[key] for key in figures if key not in ("turns_s", "load_s")}
        for side, figures in found.items()
    }
    print(
        json.dumps(
            {
                "bench": "turn_cost",
                "turns": args.turns,
                "token_limit": args.token_limit,
                "total_s": seconds,
                "time_ratio": round(seconds["generate"] / seconds["overnight"], 2),
                "memory_bytes": memory,
            }
        )
    )


if __name__ == "__main__":
    sys.exit(main())
