"""Engine `transformers`: any causal language model with a chat template, on PyTorch, exact to the bit.

`load` runs once, in the warm server; `open` in each forked child. torch and transformers are imported in `load`.
"""

from __future__ import annotations

import gc
import importlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overnight import memory
from overnight.engines import chat, model_store
from overnight.engines.base import Promise, Session
from overnight.engines.model_sources import first_line
from overnight.errors import ModelError

REVISION = 1
"""Raised whenever the same specification and libraries would give another transcript."""

_NO_LIMIT = 10**12
"""Tokenizers that know no limit give one far above this."""
_PROBE = "The night is long and the house is quiet; nobody asks for anything."
_SURROUNDINGS = {
    "HF_DEACTIVATE_ASYNC_LOAD": "1",  # transformers loads weights in threads of its own otherwise,
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "OPENBLAS_NUM_THREADS": "1",  # numpy's library starts one for each core when it is imported,
    "TOKENIZERS_PARALLELISM": "false",  # and tokenizers a pool: nothing may run across the fork
    "TRANSFORMERS_VERBOSITY": "error",
}
_CPU_FEATURES = ("amx_bf16", "amx_fp16", "amx_tile", "avx2", "avx512_bf16", "avx512_f", "avx512_fp16", "fma3")


class _TokenizerTokens:
    """`chat.Tokens` on a tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


class TransformersEngine:
    """Implements `engines.base.Engine`. `warm`: {engine, source, dtype, device, options}; `store`: the model store."""

    name = "transformers"
    promise: Promise = "exact"
    shrinks = True
    freezes = True

    def __init__(self, warm: dict[str, Any], store: Path) -> None:
        if warm.get("options"):
            named = ", ".join(sorted(warm["options"]))
            raise ModelError(f"engine transformers takes no options, the model has: {named}")
        self._source: str = warm["source"]
        self._dtype: str = warm["dtype"]
        self._wanted_device: str = warm.get("device", "cpu")
        self._store = store
        self._loaded_in = 0
        self._moved_to = "cpu"

    def load(self) -> None:
        # Adding a model is a process of its own: what converting needs is not carried into every child.
        self._manifest = model_store.ensure(self._store, self._source, self._dtype)
        model_store.check_converses(self._manifest)
        torch = _torch()
        self._tokenizer, self._model = self._read(torch, self._manifest)
        self._tokens = _TokenizerTokens(self._tokenizer)
        self._template = chat.compile_template(self._template_source())
        self._stop_ids = self._find_stop_ids()
        self._context_tokens = self._find_context()
        self._rehearse()
        memory.give_back()
        gc.freeze()
        self._loaded_in = os.getpid()

    def conditions(self, *, threads: int) -> dict[str, Any]:
        import torch

        device = self._device()
        found: dict[str, Any] = {
            "engine": self.name,
            "revision": REVISION,
            "model": {"fingerprint": self._manifest.fingerprint, "class": type(self._model).__name__},
            "dtype": self._dtype,
            "device": device,
            "threads": threads,
            "attention": str(self._model.config._attn_implementation),
            "versions": {
                "python": ".".join(platform.python_version_tuple()[:2]),
                **{name: importlib.import_module(name).__version__ for name in _LIBRARIES},
            },
            "cpu": {
                "machine": platform.machine(),
                "capability": torch.backends.cpu.get_cpu_capability(),
                "features": _cpu_features(torch),
                "mkl": bool(torch.backends.mkl.is_available()),
                "mkldnn": bool(torch.backends.mkldnn.is_available()),
            },
        }
        if device == "cuda":
            found["cuda"] = {"name": torch.cuda.get_device_name(), "version": torch.version.cuda}
        return found

    def open(self, spec: dict[str, Any], *, threads: int) -> Session:
        import torch

        from overnight.engines.sampling import Sampling
        from overnight.engines.torch_session import Runner, TransformersSession

        torch.set_num_threads(threads)
        self._move(torch)
        render = self._render(spec["template_date"], spec["model"].get("thinking"))
        return TransformersSession(
            Runner(self._model, self._moved_to),
            chat.Conversation(render, self._tokens, spec["system"]),
            self._tokens,
            how=Sampling.of(spec["sampling"]),
            stop_ids=self._stop_ids,
            context_tokens=self._context_tokens,
        )

    def _read(self, torch: Any, manifest: model_store.Manifest) -> tuple[Any, Any]:
        """Tokenizer and model from the store's folder, the weights in private memory."""
        import transformers

        from overnight.engines import kv_cache, private_weights

        transformers.utils.logging.disable_progress_bar()
        folder = str(manifest.folder)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, self._dtype), local_files_only=True, use_safetensors=True
            )
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - transformers raises whatever its parts raise
            raise ModelError(f"model {manifest.name} cannot be loaded: {first_line(error)}") from None
        kv_cache.make_cache(model.config)  # refuses an architecture before its weights are copied
        model.eval()
        model.requires_grad_(False)
        private_weights.make_private(model)
        return tokenizer, model

    def _template_source(self) -> str:
        try:
            return str(self._tokenizer.get_chat_template())
        except ValueError:
            raise ModelError(
                f"model {self._manifest.name} has no chat template: it cannot hold a conversation"
            ) from None

    def _render(self, date: str, thinking: bool | None) -> chat.Render:
        special = {name: str(token) for name, token in self._tokenizer.special_tokens_map.items()}
        return chat.renderer(self._template, special=special, date=date, thinking=thinking)

    def _find_stop_ids(self) -> frozenset[int]:
        """The generation config's, the tokenizer's, and the control token that the template ends a reply with."""
        listed = getattr(self._model.generation_config, "eos_token_id", None)
        found = {int(token) for token in (listed if isinstance(listed, list) else [listed]) if token is not None}
        if self._tokenizer.eos_token_id is not None:
            found.add(int(self._tokenizer.eos_token_id))
        end = chat.end_of_turn(self._render("2000-01-01", None), self._tokens)
        added = self._tokenizer.added_tokens_decoder.get(end)
        if end is not None and added is not None and added.special:
            found.add(end)
        if not found:
            raise ModelError(f"model {self._manifest.name} names no stop token: its replies would never end")
        return frozenset(found)

    def _find_context(self) -> int:
        config = self._model.config.get_text_config(decoder=True)
        said = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "seq_length"))
        tokens = next((found for found in said if found), self._tokenizer.model_max_length)
        if not isinstance(tokens, int) or not 0 < tokens < _NO_LIMIT:
            raise ModelError(f"model {self._manifest.name} does not say how many tokens its context holds")
        return tokens

    def _rehearse(self) -> None:
        """The warm-up: touches what every child needs, so that it is paid once, and checks the rule of resume."""
        import torch

        from overnight.engines import sampling
        from overnight.engines.torch_session import check_exact

        ids = self._tokens.encode(_PROBE)
        check_exact(self._model, (ids * 8)[:8])
        chat.Conversation(self._render("2000-01-01", None), self._tokens, _PROBE).ask(_PROBE)
        flat = torch.zeros(2048)
        sampling.pick(flat, sampling.Sampling(1.0, 0.9, 40), sampling.generator(0))

    def _device(self) -> str:
        """Where the cell computes. `auto` is decided in the child alone: asking for an accelerator in the warm
        server would open its driver, which does not survive a fork."""
        if self._wanted_device != "auto" or os.getpid() == self._loaded_in:
            return self._wanted_device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def _move(self, torch: Any) -> None:
        device = self._device()
        if device == "auto":
            raise ModelError("device auto is decided in a cell's own process, not in the warm server")
        if device == self._moved_to:
            return
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is repeatable only with it
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            self._model.to(device)
        except (AssertionError, RuntimeError) as error:
            raise ModelError(f"the weights cannot be moved to {device}: {first_line(error)}") from None
        self._moved_to = device


_LIBRARIES = ("jinja2", "tokenizers", "torch", "transformers")


def _torch() -> Any:
    """Import torch with one thread and without anything that would run across a fork. Raises ModelError."""
    os.environ.update(_SURROUNDINGS)
    try:
        import torch
        import transformers  # noqa: F401 - found missing here, with one clear line
    except ModuleNotFoundError as missing:
        raise ModelError(
            f"engine transformers needs the package {missing.name}: pip install 'overnight[transformers]'"
        ) from None
    torch.set_num_threads(1)
    return torch


def _cpu_features(torch: Any) -> list[str]:
    """The instruction sets, of those that change results, that this CPU has; from the torch releases that tell."""
    tell = getattr(torch.cpu, "get_capabilities", None)
    known: dict[str, Any] = tell() if tell is not None else {}
    return [name for name in _CPU_FEATURES if known.get(name)]
