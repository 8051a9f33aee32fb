"""What the campaign has found, kept: each input once made its reader crash, hang, tell a wrong thing, or more than a
line. And the two engines themselves."""

from __future__ import annotations

import base64
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuzz import documents, guard, mutate
from fuzz.of_transcripts import _sealed
from fuzz.readers import BY_NAME, READERS
from fuzz.sealing import sealed
from fuzz.shots import shoot
from fuzz.target import Case, Target, Wrong, check_line
from helpers.verdict_ring import heartbeat, slot, verdict
from overnight import checked, procfs
from overnight.cli import main
from overnight.config import load_config
from overnight.dispatch.registry import Registry
from overnight.errors import ConfigError, ModelError
from overnight.line import LONGEST, clear
from overnight.warm import protocol
from overnight_watchdog.config import ConfigError as WatchdogConfigError
from overnight_watchdog.config import configured_budget

DEEP = b"[" * 100_000
_DEEP_TEXT = documents.deep(100_000)


def _state(**changes: Any) -> bytes:
    """daemon.json of this very process, but for what is changed."""
    whole = {
        **{"v": 1, "boot_id": procfs.boot_id(), "pid": os.getpid(), "start_ticks": procfs.start_ticks(os.getpid())},
        **{"sequence": 1, "monotonic_s": 1.0, "stopping": False, "holding": "", "slots": 2, "memory": None},
        **{"warm": [], "running": []},
    }
    return documents.dump({**whole, **changes}).encode()


def _beat(**changes: Any) -> bytes:
    whole = {
        "v": 1,
        "boot_id": procfs.boot_id(),
        "pid": 4242,
        "start_ticks": 107,
        "monotonic_s": 3.5,
        "stopping": False,
    }
    return sealed({**whole, **changes}, 1024)


def _pressure(**changes: Any) -> bytes:
    return heartbeat(os.getpid(), **changes)


def _ring(**changes: Any) -> bytes:
    return slot(verdict(4242, 77_000, 7)) + sealed({**verdict(4242, 77_000, 9), **changes}, 1024)


def _zeroed_behind() -> bytes:
    """The daemon believes such a record: the next one has to come behind it."""
    return _ring().rstrip(b" \n").ljust(64 * 1024, b"\0")


def _weights(**header: Any) -> bytes:
    text = documents.dump(header).encode()
    return struct.pack("<Q", len(text)) + text


def _manifest(**changes: Any) -> bytes:
    whole = {
        **{
            "v": 1,
            "name": "m",
            "source": "org/m",
            "origin": "",
            "dtype": "float32",
            "fingerprint": "0" * 64,
            "params": 6,
        },
        **{"bytes": 24, "files": {}, "created_at": "2025-01-01T00:00:00+00:00", "versions": {}},
    }
    return documents.dump({**whole, **changes}).encode()


def _gguf(tensors: int, pairs: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + rest


_ROW = {"grid": "g", "cell": "k", "phase": "running", "pid": None, "turn": 1, "output_tokens": [], "seconds": 1.0}
_FOUND: tuple[tuple[str, str, bytes], ...] = (
    ("settings (daemon)", "a size beyond every float", b'[memory]\nbudget = "' + b"9" * 400 + b'TiB"\n'),
    ("settings (daemon)", "a number of 5,000 digits", b"[daemon]\nslots = " + b"9" * 5000),
    ("settings (daemon)", "deep arrays", b"a = " + DEEP),
    ("settings (daemon)", "a key of 5,000 characters", b"x" * 5000 + b" = 1\n"),
    ("settings (daemon)", "a key of two lines", b'"a\\nb" = 1\n'),
    ("settings (daemon)", "a time that never ends", b"[warm]\nload_timeout_s = inf\n"),
    ("settings (watchdog)", "deep arrays", b"a = " + DEEP),
    ("settings (watchdog)", "a number of 5,000 digits", b"[memory]\nbudget = " + b"9" * 5000),
    ("settings (watchdog)", "a size of 5,000 characters", b'[memory]\nbudget = "' + b"x" * 5000 + b'"\n'),
    ("overnight's arguments", "bytes that are no text", b"status\0--\xff\xfe"),
    ("overnight's arguments", "an argument of two lines and a colour", b"status\0--a\nb\x1b[31m"),
    ("overnight's arguments", "an argument of 5,000 characters", b"status\0--" + b"x" * 5000),
    ("the watchdog's arguments", "an argument of 5,000 characters", b"--" + b"x" * 5000),
    ("the watchdog's arguments", "a tab", b"--on\tce"),
    ("secrets file", "the second line of a secret, as a name", b"API_KEY=canary-4f1c\n4f1c9a77d0=\n"),
    ("secrets file", "the second line of a secret, quoted", b"API_KEY=canary-4f1c\nc9a77d0_4f1c9a77d0='\n"),
    ("transcript", "a sealed line, nested deep", _sealed([{"kind": "header", "v": 1, "spec": _DEEP_TEXT}])),
    ("tail", "a line, nested deep", b'{"kind":"header","spec":' + DEEP + b"\n"),
    ("tail", "a hash that is no text", b'{"kind":"header","h":"\\ud800"}\n' * 2),
    ("result.json (command)", "nested deep", DEEP),
    ("result.json (command)", "a file that never ends", b'{"files":[{"name":"/dev/zero","sha256":"0"}]}'),
    ("result.json (idle loop)", "nested deep", DEEP),
    ("pressure.json (daemon)", "a limit of 2**64", _pressure(limit_bytes=2**64)),
    ("pressure.json (daemon)", "a figure of 400 digits", _pressure(headroom_bytes=10**300)),
    ("pressure.json (daemon)", "a heartbeat of the future", _pressure(monotonic_s=1e15)),
    ("pressure.json (daemon)", "a level that recolours the terminal", _pressure(level="ok\x1b[31m")),
    ("pressure.json (daemon)", "a level without a name", _pressure(level="")),
    ("pressure.json (daemon)", "a time that is no number", _pressure(exhaustion_s="nan")),
    ("the watchdog's answer (doctor)", "a limit of 400 digits", b'{"limit_bytes":' + b"9" * 400 + b"}"),
    ("verdicts.ring (daemon)", "a NUL in a name", _ring(limit_source="\0")),
    ("verdicts.ring (daemon)", "a figure of 300 digits", _ring(own_bytes=10**300)),
    ("verdicts.ring (watchdog)", "a sequence that fills the record", _ring(sequence=10**700)),
    ("verdicts.ring (watchdog)", "a sequence that only the daemon believes", _ring(sequence=2**60)),
    ("verdicts.ring (watchdog)", "a place that was only half zeroed", _zeroed_behind()),
    ("daemon.beat", "a time that is no number", _beat(monotonic_s="nan")),
    ("daemon.beat", "a time of 300 digits", _beat(monotonic_s=10**300)),
    ("daemon.json", "no memory figures", _state(memory={})),
    ("daemon.json", "a list where tokens belong", _state(running=[_ROW])),
    ("daemon.json", "text where rows belong", _state(running="ab")),
    ("daemon.json", "nobody's pid", _state(pid="x" * 10)),
    ("daemon.json", "nested deep", DEEP),
    ("lock files", "a holder of two lines", b'{"pid":1,"since":"a\\nb\\u0000"}'),
    ("lock files", "nested deep", DEEP),
    ("lock files", "an infinite pid", b'{"pid":Infinity,"start_ticks":1,"boot_id":"x"}'),
    ("supervisord.pid", "more than any pid", b"2836628366"),
    ("supervisord.pid", "less than any pid", b"-5"),
    ("kernel files (daemon)", "a membership without colons", b"proc/self/cgroup\0nothing\n"),
    ("kernel files (daemon)", "no MemTotal", b"proc/meminfo\0MemFree: 5 kB\n"),
    ("kernel files (daemon)", "no number for a parent", b"proc/7/stat\0" + b"7 (x) S \x80 " + b"1 " * 40),
    ("kernel files (daemon)", "no text", b"proc/7/status\0Name:\t\xff\nRssAnon:\t5 kB\n"),
    ("kernel files (daemon)", "no pids", b"sys/fs/cgroup/new/leaf/cgroup.procs\0on\n"),
    ("kernel files (daemon)", "an empty stat", b"proc/7/stat\0"),
    ("model.json", "files without times", _manifest(files={"config.json": {"bytes": 1, "sha256": "0"}})),
    ("model.json", "text where files belong", _manifest(files="ab")),
    ("model.json", "a list where bytes belong", _manifest(bytes=[1])),
    ("model.json", "a version of 2,000 characters", _manifest(v="x" * 2000)),
    ("model.json", "nested deep", DEEP),
    ("config.json", "a claim beyond every float", b'{"num_hidden_layers":' + b"9" * 400 + b',"n_embd":1,"n_head":1}'),
    ("config.json", "nested deep", DEEP),
    ("config.json", "a text where a config belongs", b'{"text_config":"x"}'),
    ("safetensors", "no shape", _weights(a={"dtype": "F32"})),
    ("safetensors", "a shape that would be three gigabytes of text", _weights(a={"shape": ["abc", 10**9]})),
    ("safetensors", "more parameters than there can be", _weights(a={"shape": [2**62, 2**62]})),
    ("safetensors", "a header of 90 MiB in a file of nothing", struct.pack("<Q", 90 << 20) + b"{}"),
    ("safetensors", "nested deep", struct.pack("<Q", len(DEEP)) + DEEP),
    ("safetensors index", "a list of lists", b'{"weight_map":[[1]]}'),
    ("safetensors index", "names that are none", b'{"weight_map":{"a":{"b":1}}}'),
    ("safetensors index", "a name of 1,000 characters", b'{"weight_map":{"a":"' + b"9" * 1000 + b'"}}'),
    ("safetensors index", "a file elsewhere", b'{"weight_map":{"a":"../../../etc/passwd"}}'),
    ("GGUF", "2**62 settings in 4 GiB of nothing", _gguf(1, 2**62, b"\0")),
    ("GGUF", "2**62 tensors in 4 GiB of nothing", _gguf(2**62, 0, b"\0")),
    ("GGUF", "arrays within arrays", _gguf(0, 1, struct.pack("<QI", 0, 9) + struct.pack("<IQ", 9, 1) * 5000)),
    ("GGUF", "a text of 2**64 bytes", _gguf(0, 1, b"\xff" * 8)),
    ("GGUF", "more parameters than there can be", _gguf(1, 0, struct.pack("<QIQQIQ", 0, 2, 2**60, 2**60, 0, 0))),
    ("warm packet", "no object", b"[]"),
    ("warm packet", "null", b"null"),
    ("warm packet", "no kind", b'{"attempt":1}'),
    ("warm packet", "a kind that is no text", b'{"kind":[1]}'),
    ("warm packet", "nested deep", b'{"kind":' + DEEP[:50_000]),
    ("warm packet", "a lone surrogate", b'{"kind":"ended","reason":"\\udcff"}'),
    ("queue.db values", "text that is no UTF-8", b"\xff\x12\xff\xff\xff7"),
    ("queue.db values", "nested deep", DEEP),
)


@pytest.fixture
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    target = BY_NAME[request.param](tmp_path)
    yield target
    target.close()


@pytest.mark.parametrize(
    ("reader", "data"),
    [(name, data) for name, _, data in _FOUND],
    indirect=["reader"],
    ids=[f"{a}: {b}" for a, b, _ in _FOUND],
)
def test_what_was_found_is_mended(reader: Target, data: bytes) -> None:
    outcome = guard.execute(reader, Case(data, crafted=True))
    assert outcome.complaint is None


def test_a_resealed_turn_of_the_wrong_kind_is_corrupt(tmp_path: Path) -> None:
    target: Any = BY_NAME["transcript, resumed"](tmp_path)
    records = json.loads(json.dumps(target.documents()[0]))
    records[1]["reply_ids"] = 5
    outcome = guard.execute(target, Case(target.render(records), crafted=True))
    assert outcome.complaint is None
    assert "reply_ids" in outcome.shape


def test_a_resealed_header_without_conditions_is_corrupt(tmp_path: Path) -> None:
    target: Any = BY_NAME["transcript, resumed"](tmp_path)
    records = json.loads(json.dumps(target.documents()[0]))
    del records[0]["conditions"]
    outcome = guard.execute(target, Case(target.render(records), crafted=True))
    assert outcome.complaint is None
    assert "conditions" in outcome.shape


@pytest.mark.parametrize("pid", [-1, 0, 1, 2**22 + 1, 2**70, True, "12", 3.0, None])
def test_a_starting_daemon_ends_nobody_who_can_be_no_cell(tmp_path: Path, pid: Any) -> None:
    entry = {"v": 1, "boot_id": procfs.boot_id(), "pid": pid, "start_ticks": 5, "role": "cell", "by": "overnight"}
    (tmp_path / "x.json").write_text(json.dumps(entry))
    assert list(Registry(tmp_path).ours()) == []


@pytest.mark.parametrize(
    "read",
    [
        lambda path: list(Registry(path.parent).ours()),
        load_config,
        configured_budget,
        lambda path: procfs.read_pid(path),
        lambda path: BY_NAME["safetensors"](path.parent / "t"),
    ],
)
def test_a_pipe_keeps_nobody_waiting(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    (tmp_path / "t").mkdir()
    os.mkfifo(tmp_path / "4242.json")
    try:
        read(tmp_path / "4242.json")
    except (ConfigError, WatchdogConfigError) as error:
        assert "regular" in str(error)


def test_what_is_larger_than_it_can_be_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x" * 11)
    assert checked.read_small(path, 11) == b"x" * 11
    with pytest.raises(OSError, match="larger than 10 bytes"):
        checked.read_small(path, 10)
    with pytest.raises(OSError, match="no regular file"):
        checked.read_small(Path("/dev/zero"))


@pytest.mark.parametrize("value", [-1, 2**63, 1.0, True, "1", None, [], float("nan")])
def test_a_whole_number_is_nothing_else(value: Any) -> None:
    with pytest.raises(ValueError, match="a whole number"):
        checked.whole(value)


def test_messages_are_one_clear_line() -> None:
    for text in ("a\nb", "\x1b[31mred", "\u202e", "\udcff", "x" * 10**6, "\0" * 10**6):
        line = clear(f"begin {text} end")
        assert line.startswith("begin ")
        assert line.endswith(" end")
        assert len(check_line(line)) <= LONGEST
        assert str(ModelError(f"begin {text} end")) == line


def test_a_name_that_is_no_text_travels_in_a_packet() -> None:
    left, right = protocol.pair()
    left.send("ended", reason="cannot open \udcff.txt")
    assert right.receive() == {"kind": "ended", "reason": "cannot open \udcff.txt"}
    left.close()
    right.close()


def test_arguments_are_quoted_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(["status", "--no\nsuch", "x" * 5000])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 1000
    assert "--help" in line


# -- the engines --------------------------------------------------------------------------------------------------


class Fragile(Target):
    """Falls over a byte, waits for another, and takes a third for fine."""

    name = "fragile"

    def seeds(self) -> list[bytes]:
        return [b'{"kind": "x", "size": 7}']

    def documents(self) -> list[Any]:
        return [{"kind": "x", "size": 7}]

    def read(self, case: Case) -> str:
        found = json.loads(case.data)
        if not isinstance(found["size"], int):
            raise Wrong("a size that is none")
        return "taken"


def test_both_engines_find_what_is_wrong_with_a_fragile_reader(tmp_path: Path) -> None:
    found = " ".join(shoot(Fragile(tmp_path), 1, 400, 0).complaints.values())
    assert "JSONDecodeError" in found
    found = " ".join(shoot(Fragile(tmp_path), 1, 0, 150).complaints.values())
    assert "KeyError: 'size'" in found or "a size that is none" in found or "RecursionError" in found


def test_a_round_is_reproducible(tmp_path: Path) -> None:
    def inputs(seed: int) -> list[bytes]:
        seen: list[bytes] = []
        shoot(Fragile(tmp_path), seed, 100, 30, lambda case: seen.append(case.data))
        return seen

    assert inputs(3) == inputs(3)
    assert inputs(3) != inputs(4)


def test_a_mutator_leaves_bytes_within_bounds() -> None:
    import random

    mutator = mutate.Mutator(random.Random(5), [b"token"])
    made = [mutator.mutate(b"seed " * 9, [b"other"]) for _ in range(500)]
    assert all(len(each) <= mutate.MOST_BYTES for each in made)
    assert len(set(made)) > 400


def test_every_reader_takes_its_own_seeds(tmp_path: Path) -> None:
    for number, kind in enumerate(READERS):
        folder = tmp_path / str(number)
        folder.mkdir()
        target = kind(folder)
        outcomes = [guard.execute(target, Case(seed)) for seed in target.seeds()]
        target.close()
        assert [outcome.complaint for outcome in outcomes if outcome.complaint] == [], target.name
        assert any(outcome.shape.startswith("=") for outcome in outcomes), f"{target.name} takes none of its seeds"


@pytest.mark.parametrize(
    "reader", [kind.name for kind in READERS if kind.documents is not Target.documents], indirect=True
)
def test_documents_are_good_ones_before_they_are_edited(reader: Target) -> None:
    for document in reader.documents():
        outcome = guard.execute(reader, Case(reader.render(document), crafted=True))
        assert outcome.shape.startswith("="), outcome
        assert outcome.shape not in ("= nothing", "= nobody"), outcome


def test_a_complaint_can_be_seen_again(tmp_path: Path) -> None:
    (told,) = list(shoot(Fragile(tmp_path), 1, 0, 0).complaints.values())[:1]
    packed = told.rpartition(" ")[2]
    assert zlib.decompress(base64.b85decode(packed)) in (b"", b"\0", b"\n")
