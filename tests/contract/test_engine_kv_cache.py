"""The growing cache gives the very bits of `DynamicCache`, at every length, and is cropped exactly."""

from __future__ import annotations

from typing import Any

import pytest

from helpers import tiny_models
from overnight.errors import ModelError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY = 300


def model(config: str = "LlamaConfig", dtype: str = "float32", **settings: Any) -> Any:
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.4,
        "pad_token_id": 0,
    }
    made = getattr(transformers, config)(**{**shape, **settings})
    return transformers.AutoModelForCausalLM.from_config(made).to(getattr(torch, dtype)).eval()


def ids(count: int, seed: int = 0) -> list[int]:
    source = torch.Generator().manual_seed(seed)
    found: list[int] = torch.randint(1, VOCABULARY, (count,), generator=source).tolist()
    return found


def logits(of: Any, cache: Any, tokens: list[int]) -> Any:
    given = {"input_ids": torch.tensor([tokens]), "past_key_values": cache, "use_cache": True}
    with torch.inference_mode():
        return of(**given, logits_to_keep=1).logits[0, -1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("LlamaConfig", {}),
        ("LlamaConfig", {"num_key_value_heads": 4}),
        ("LlamaConfig", {"attn_implementation": "eager"}),
        ("Qwen3Config", {"head_dim": 16}),
        ("Gemma2Config", {"head_dim": 16, "sliding_window": 4096}),
    ],
)
def test_bit_equal_to_dynamic_cache(config: str, settings: dict[str, Any], dtype: str) -> None:
    from overnight.engines import kv_cache

    torch.set_num_threads(1)
    tested = model(config, dtype, **settings)
    ours, theirs = kv_cache.make_cache(tested.config), transformers.DynamicCache()
    for turn in range(4):
        chunk = ids(90 + turn, seed=turn)
        assert torch.equal(logits(tested, ours, chunk), logits(tested, theirs, chunk))
        for token in ids(8, seed=100 + turn):
            assert torch.equal(logits(tested, ours, [token]), logits(tested, theirs, [token]))
        ours.crop(-8)
        theirs.crop(-8)
        assert ours.get_seq_length() == theirs.get_seq_length()
    assert ours.get_seq_length() > kv_cache.STEP_TOKENS, "room was added under way"


def test_a_sliding_window_slides_and_can_be_cropped() -> None:
    """Beyond the window transformers' own layers cannot go back; with all history kept, the logits are theirs."""
    from overnight.engines import kv_cache

    tested = model("Gemma3TextConfig", sliding_window=16, head_dim=8, layer_types=["sliding_attention"] * 3)
    ours, theirs = kv_cache.make_cache(tested.config), transformers.DynamicCache(config=tested.config)
    for turn in range(5):
        chunk = ids(30, seed=turn)
        torch.testing.assert_close(logits(tested, ours, chunk), logits(tested, theirs, chunk), rtol=1e-4, atol=1e-4)
        before = logits(tested, ours, ids(1, seed=50))
        for token in ids(20, seed=60 + turn):
            logits(tested, ours, [token])
        ours.crop(-21)
        assert torch.equal(logits(tested, ours, ids(1, seed=50)), before), "the same place, reached twice"
        ours.crop(-1)


def test_the_window_matters_in_that_test() -> None:
    """Three sliding layers see 45 tokens back: what is older must change nothing, what is younger must."""
    from overnight.engines import kv_cache

    tested = model("Gemma3TextConfig", sliding_window=16, head_dim=8, layer_types=["sliding_attention"] * 3)
    tail = ids(60, seed=1)

    def end(head: list[int]) -> Any:
        return logits(tested, kv_cache.make_cache(tested.config), head + tail)

    torch.testing.assert_close(end(ids(40, seed=2)), end(ids(40, seed=3)), rtol=1e-4, atol=1e-4)
    changed = [*tail[:50], (tail[50] + 1) % VOCABULARY, *tail[51:]]
    cache = kv_cache.make_cache(tested.config)
    assert not torch.allclose(end(ids(40, seed=2)), logits(tested, cache, ids(40, seed=2) + changed))


def test_room_grows_in_steps_and_stays() -> None:
    from overnight.engines import kv_cache

    layer = kv_cache.GrowingLayer()
    piece = torch.ones(1, 2, 1, 4)
    places = set()
    for number in range(300):
        keys, values = layer.update(piece * number, piece * -number)
        places.add(layer.keys.data_ptr())
    assert len(places) == 2, "one copy after 256 tokens, none else"
    assert keys.shape == values.shape == (1, 2, 300, 4)
    assert keys[0, 1, :, 0].tolist() == [float(number) for number in range(300)]
    assert values[0, 0, :, 3].tolist() == [float(-number) for number in range(300)]
    layer.crop(-300)
    assert layer.get_seq_length() == 0
    assert layer.update(piece, piece)[0].shape == (1, 2, 1, 4)


@pytest.mark.parametrize("wrong", [1, -3])
def test_cropping_more_than_there_is_is_an_error(wrong: int) -> None:
    from overnight.engines import kv_cache

    layer = kv_cache.GrowingLayer()
    layer.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4))
    with pytest.raises(ValueError, match="cannot be cropped"):
        layer.crop(wrong)


@pytest.mark.parametrize(
    ("config", "settings"),
    [("MambaConfig", {}), ("Lfm2Config", {"layer_types": ["full_attention", "conv"]}), ("FalconH1Config", {})],
)
def test_states_that_cannot_be_cropped_are_refused(config: str, settings: dict[str, Any]) -> None:
    from overnight.engines import kv_cache

    made = getattr(transformers, config)(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, **settings)
    with pytest.raises(ModelError, match=r"cannot be cropped \(LinearAttention"):
        kv_cache.make_cache(made)


def test_an_inexact_model_is_refused_at_load() -> None:
    """The rehearsal finds a model whose logits depend on more than the cache, whatever its architecture says."""
    from overnight.engines.torch_session import check_exact

    tested = model()
    check_exact(tested, ids(8))
    passes = []

    def remember(module: Any, given: Any, output: Any) -> Any:
        passes.append(1)
        return output + len(passes) * 1e-3

    tested.model.norm.register_forward_hook(remember)
    with pytest.raises(ModelError, match="other logits after its cache was cropped"):
        check_exact(tested, ids(8))


def test_a_model_that_ignores_the_cache_is_refused_at_load() -> None:
    from overnight.engines.torch_session import check_exact

    tested = model()

    class Forgetful:
        config = tested.config

        def forward(self, input_ids: Any, past_key_values: Any = None, use_cache: bool = False) -> Any:
            return tested(input_ids=input_ids, use_cache=False)

        __call__ = forward

    with pytest.raises(ModelError, match="does not keep its history in the cache"):
        check_exact(Forgetful(), ids(8))


def test_tiny_models_are_what_the_hub_would_give() -> None:
    """The helper's tokenizers add a first token unless told not to, as Llama's and Gemma's do."""
    tokenizer = tiny_models.make_tokenizer("gemma2")
    assert tokenizer.encode("night")[0] == tokenizer.bos_token_id
    assert tokenizer.encode("night", add_special_tokens=False)[0] != tokenizer.bos_token_id
