"""What a cell and its warm server will take, by arithmetic on the model's config, before anything was measured.

It reads a few kilobytes of the model store: manifests and `config.json`; for a model that is not there yet, the headers
of its weights. Nothing is asked of a network, nothing is hashed, what was read is remembered. Standard library only.

*Measured* constants: SmolLM2-135M in float32, forked off its loaded warm server, 0 to 8,000 tokens prefilled in pieces
of 512 and 20 decoded, its private dirty pages sampled every few milliseconds. Anonymous memory of the loaded server:
802 MiB, 513 of them weights. A cell: 3 MiB before its first token; 30, 83, 128, 180, 307 and 586 MiB with 64, 512,
1,024, 2,048, 4,096 and 8,000 tokens, of which 3, 23, 45, 90, 180 and 352 MiB are keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from overnight import checked
from overnight.engines import model_sizes, model_sources
from overnight.engines.model_store import MANIFEST
from overnight.errors import ModelError

MIB = 2**20
LIGHT_SERVER_BYTES = 24 * MIB
"""A warm server without a model: an interpreter and our own code."""
TORCH_SERVER_BYTES = 290 * MIB
"""Anonymous memory of a loaded server beyond its weights: torch, transformers, tokenizer (*measured*: 289 MiB)."""
SCRIPTED_CELL_BYTES = 8 * MIB
PIECE_TOKENS = 512
"""The longest piece that is prefilled at once (`torch_session.PIECE_TOKENS`, which cannot be imported here)."""
STEP_TOKENS = 256
"""The cache grows by so many tokens (`kv_cache.STEP_TOKENS`)."""
CELL_BASE_BYTES = 28 * MIB
"""Copied pages of the interpreter and torch's first buffers (*measured*: 27 MiB with 64 tokens, 3 of them cache)."""
ALLOCATOR_SHARE = 1.3
"""What the cache takes for each byte of keys and values: layers grow one after the other, by copying, and the C library
keeps the holes (*measured*: 1.2 to 1.35 from 1,024 to 8,000 tokens)."""
LIVE_ACTIVATIONS = 2
"""Copies of the widest activations of a piece that live at the same time."""
_MASK_BYTES = 5
"""One place of an attention mask: a truth value and what it becomes in float32."""
_TEMPLATE_TOKENS = 16
"""What a chat template puts around one message and one reply."""
_MESSAGE_TOKENS = 16
"""`10 hours and 0 minutes to go`, in any tokenizer."""
_BYTES_A_TOKEN = 3
"""English has about 4; fewer is the safe side."""
_UNKNOWN_CONTEXT = 10**9
_MOST = 10**9
"""Of a figure of a config: no model has more layers, heads or tokens than that."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model's config its memory depends on."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    intermediate: int
    vocabulary: int
    context: int

    def kv_bytes_per_token(self, item_bytes: int) -> int:
        """Keys and values of all layers: 2 x layers x key/value heads x head size x bytes of an item
        (https://arxiv.org/abs/2305.13245: grouped heads share theirs)."""
        return 2 * self.layers * self.kv_heads * self.head_size * item_bytes

    def prefill_bytes(self, piece: int, tokens: int, item_bytes: int) -> int:
        """The spike of prefilling the last `piece` of `tokens`: hidden states in, out and normalised, queries and their
        like, the gated feed-forward's three wide ones; the attention mask, and one layer's keys and values repeated
        for all heads (transformers, `integrations/sdpa_attention.py`); and the last position's logits as float32 with
        their sorted copies."""
        wide = LIVE_ACTIVATIONS * (6 * self.hidden + 3 * self.intermediate) * item_bytes
        attention = tokens * (piece * _MASK_BYTES + 2 * self.heads * self.head_size * item_bytes)
        return piece * wide + attention + 8 * self.vocabulary * 4


def shape(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a model folder's config.json tells; None when it tells too little."""
    inner = config.get("text_config")
    found: Mapping[str, Any] = inner if inner and isinstance(inner, dict) else config
    layers = _first(found, "num_hidden_layers", "n_layer")
    hidden = _first(found, "hidden_size", "n_embd")
    heads = _first(found, "num_attention_heads", "n_head")
    if not layers or not hidden or not heads:
        return None
    return Shape(
        layers=layers,
        heads=heads,
        kv_heads=_first(found, "num_key_value_heads") or heads,
        head_size=_first(found, "head_dim") or hidden // heads,
        hidden=hidden,
        intermediate=_first(found, "intermediate_size", "n_inner") or 4 * hidden,
        vocabulary=_first(found, "vocab_size") or 0,
        context=_first(found, "max_position_embeddings", "n_positions", "seq_length") or _UNKNOWN_CONTEXT,
    )


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if type(value) is int and 0 < value <= _MOST:
            return value
    return None


def most_tokens(spec: Mapping[str, Any], context: int) -> tuple[int, int]:
    """The longest history that a cell's limits allow, and the longest piece that it prefills at once, in tokens."""
    limits = spec["limits"]
    turns, reply, target = limits["max_iterations"], limits["token_limit"], limits["target_output_tokens"]
    replies = turns * reply if target is None else min(turns * reply, target + reply)
    message = _MESSAGE_TOKENS + _TEMPLATE_TOKENS
    system = len(spec.get("system", "").encode()) // _BYTES_A_TOKEN + _TEMPLATE_TOKENS
    tokens = min(context, system + replies + turns * message)
    return tokens, min(tokens, PIECE_TOKENS, max(system, reply) + message)


def cell_bytes(spec: Mapping[str, Any], store: Path) -> int | None:
    """What a cell takes beyond its warm server when it uses up its limits; None where arithmetic cannot tell: a
    command, a model that is not in the store yet, a config without the figures."""
    if spec.get("engine") == "scripted":
        return SCRIPTED_CELL_BYTES + int(spec["model"].get("options", {}).get("cache_bytes", 0))
    if spec.get("engine") != "transformers":
        return None
    model = spec["model"]
    item_bytes = model_sizes.ITEM_BYTES.get(model["dtype"])
    held = _held(store, model["source"], model["dtype"])
    if held is None or held.shape is None or item_bytes is None:
        return None
    tokens, piece = most_tokens(spec, held.shape.context)
    room = -(-tokens // STEP_TOKENS) * STEP_TOKENS
    cache = int(room * held.shape.kv_bytes_per_token(item_bytes) * ALLOCATOR_SHARE)
    found = CELL_BASE_BYTES + cache + held.shape.prefill_bytes(piece, tokens, item_bytes)
    return found if found <= checked.MOST else None  # a config that claims more than there can be


def server_bytes(warm: Mapping[str, Any], store: Path) -> int:
    """What a warm server takes once its model is loaded. A model whose size cannot be told without a network counts as
    no weights until it is in the store: what is measured while it loads says the rest."""
    if warm.get("engine") != "transformers":
        return LIGHT_SERVER_BYTES
    held = _held(store, warm["source"], warm["dtype"])
    weights = _weights_elsewhere(warm["source"], warm["dtype"]) if held is None else held.weights_bytes
    return TORCH_SERVER_BYTES + weights


@dataclass(frozen=True, slots=True)
class _Held:
    name: str
    source: str
    dtype: str
    weights_bytes: int
    shape: Shape | None


def _held(store: Path, source: str, dtype: str) -> _Held | None:
    """The model of the store that a grid's `source` means: by its name there, else by what it was added from."""
    recorded = _recorded(source)
    by_source = None
    try:
        folders = sorted(store.glob(f"[!.]*--{dtype}"))
    except OSError:
        return None
    for folder in folders:
        try:
            stamp = (folder / MANIFEST).stat().st_mtime_ns
        except OSError:
            continue
        found = _read(folder, stamp)
        if found is not None and found.dtype == dtype:
            if found.name == source:
                return found
            by_source = found if found.source == recorded else by_source
    return by_source


@lru_cache(maxsize=256)
def _recorded(source: str) -> str:
    try:
        return model_sources.resolve(source).recorded
    except (ModelError, OSError):
        return source


@lru_cache(maxsize=256)
def _read(folder: Path, _stamp: int) -> _Held | None:
    try:
        manifest = checked.json_object(checked.read_small(folder / MANIFEST))
        config = checked.json_object(checked.read_small(folder / "config.json"))
        name, dtype = (checked.text(manifest[each]) for each in ("name", "dtype"))
        source = checked.path(manifest["source"])
        return _Held(name, source, dtype, checked.whole(manifest["bytes"]), shape(config))
    except (OSError, ValueError, KeyError):
        return None  # a damaged model is refused by whoever loads it, with a sentence


@lru_cache(maxsize=256)
def _weights_elsewhere(source: str, dtype: str) -> int:
    """Weights of a model folder or file that is not in the store yet, in the wanted dtype; 0 when it cannot be told."""
    try:
        found = model_sources.resolve(source)
        return 0 if found.is_hub else found.params() * model_sizes.ITEM_BYTES.get(dtype, 4)
    except (ModelError, OSError):
        return 0
