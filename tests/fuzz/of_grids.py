"""Grid files of both kinds, and what is planned from those that are taken."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzz.target import Case, Target, expect
from overnight.durable import canonical
from overnight.errors import GridError
from overnight.grid import keys, yaml_source
from overnight.grid.expand import AnyGrid, count_cells, expand, policy
from overnight.grid.loader import load_grid
from overnight.paths import shipped

_ALL_OF_IDLE_LOOPS = """\
name: all
seed: 5
runs: 3
tries: 2
models:
  - {name: script, engine: scripted, threads: 2, options: {reply_tokens: [5, 9], delay_s: 0.5, cache_bytes: 8MiB}}
  - name: small
    engine: transformers
    source: ./models/small.gguf
    dtype: bfloat16
    thinking: false
    sampling: {temperature: 0.7, top_p: 0.9, top_k: 40}
scaffolds: [1, 2, {id: 12, name: mine, text: "Be bored.\\nFor a while."}]
axes: {temperature: [0, 0.5, 1e-3], token_limit: [64, 128], target_output_tokens: [null, 100]}
limits: {max_iterations: 5, target_output_tokens: 100, token_limit: 64, shift_hours: 10.5, timeout: 2h}
memory: 1.5GB
template_date: 2025-02-28
"""
_ALL_OF_COMMANDS = """\
name: sweep
kind: command
runs: 2
command: [python3, train.py, --lr, '{lr}', --seed, '{seed}', '{{}}', '{cell}']
axes: {lr: [0.1, 0.01, 1e-4], batch: 16..64..16, opt: [adam, sgd, null, true], seed: [1, 2]}
env: {OMP_NUM_THREADS: '1', WHERE: 'out/{opt}'}
cwd: .
memory: 2GiB
timeout: 90m
grace: 30s
cap: address_space
keep: [out/*.png, 'log-{lr}.txt', '**/metrics.json']
threads: 2
"""
_SHELL = (
    "name: line\nkind: command\nshell: true\ncommand: 'sleep {s} && echo ${{HOME}} > {cell}.txt'\naxes: {s: 1..3}\n"
)


def _characters(value: Any) -> set[str]:
    """All that stand in the texts of a value, but for line ends and tabs."""
    if isinstance(value, str):
        return set(value) - {"\n", "\t"}
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return set().union(*map(_characters, inner))


def check_plan(grid: AnyGrid, only: dict[str, set[str]] | None = None) -> int:
    """The first cells of a grid that was taken are ones that can be queued and kept."""
    total = count_cells(grid, only=only)
    canonical(policy(grid))
    canonical(grid.model_dump(mode="json"))
    found = list(itertools.islice(expand(grid, only=only), 4))
    expect(len(found) == min(4, total), f"{total} cells, and {len(found)} of them come first")
    expect(len({cell.key for cell in found}) == len(found), "two cells with one key")
    for cell in found:
        canonical({**cell.template, "coords": cell.coords, "seed": cell.seed})
        expect(Path(cell.key).name == cell.key and not cell.key.startswith("."), f"a key that leaves: {cell.key!r}")
        expect(cell.key.isprintable() and cell.key.isascii(), f"a key that is no name: {cell.key!r}")
        expect(len(cell.key) <= keys.LONGEST_KEY, f"a key of {len(cell.key)} characters")
        expect(0 <= cell.seed < 2**63, "a seed that the queue cannot hold")
    return total


class GridFile(Target):
    """A file below its name: `load_grid`, then the first cells."""

    name = "grid file"
    share = 0.7
    clear = (GridError,)
    tokens = (
        *(b"name: ", b"kind: command\n", b"kind: idle_loop\n", b"models:\n", b"scaffolds:\n", b"axes: ", b"runs: "),
        *(
            b"command: ",
            b"shell: true\n",
            b"cwd: scratch\n",
            b"keep: ",
            b"env: ",
            b"memory: ",
            b"timeout: ",
            b"grace: ",
        ),
        *(b"limits: ", b"options: ", b"sampling: ", b"engine: scripted\n", b"engine: transformers\n", b"- ", b"  "),
        *(
            b"&a ",
            b"*a",
            b"!!python/object/apply:os.system ",
            b"!!binary ",
            b"<<: ",
            b"---\n",
            b"...\n",
            b"%YAML 1.1\n",
        ),
        *(b"|\n", b">-\n", b"? ", b"# ", b"'", b"{lr}", b"{{", b"1..5", b"1..999999", b"0..10..0", b"2GiB", b"90s"),
        *(
            b"\xe2\x80\xa8",
            b"\xc2\x85",
            b"\xf0\x9f\x98\x80",
            b"\\U00110000",
            b".inf",
            b".nan",
            b"0x1F",
            b"1_000",
            b"010",
        ),
    )

    def seeds(self) -> Sequence[bytes]:
        files = [path.read_bytes() for path in sorted((shipped() / "grids").glob("*.yaml"))]
        broken = Path(__file__).resolve().parents[1] / "data" / "broken_grids"
        files += [path.read_bytes() for path in sorted(broken.iterdir()) if path.is_file()][:30]
        return [text.encode() for text in (_ALL_OF_IDLE_LOOPS, _ALL_OF_COMMANDS, _SHELL)] + files

    def documents(self) -> Sequence[Any]:
        """JSON is YAML."""
        return [yaml_source.read(text, "seed").value for text in (_ALL_OF_IDLE_LOOPS, _ALL_OF_COMMANDS, _SHELL)]

    def read(self, case: Case) -> str:
        path = self.folder / "night.yaml"
        path.write_bytes(case.data)
        try:
            grid = load_grid(path)
            characters = _characters(grid.model_dump(mode="json"))
            expect(all(unicodedata.category(char) not in ("Cc", "Cs") for char in characters), "a control character")
            return f"{min(3, check_plan(grid))} cells"
        except GridError as error:
            expect("night.yaml" in str(error), f"it does not say which file: {error}")
            raise
