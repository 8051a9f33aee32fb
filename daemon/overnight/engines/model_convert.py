"""Turns a source into the store's form: safetensors in the wanted dtype, config, tokenizer with its chat template.

Run this in a process that ends: it imports torch and transformers and holds a whole model in memory.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from overnight.engines.model_sources import ENCODER_MARK, first_line, is_encoder
from overnight.errors import ModelError

DOWNLOAD_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]
"""What is fetched of a hub's repository: no other frameworks' copies of the weights."""

_NO_DOWNLOAD = ["original/*", "onnx/*", "metal/*", "consolidated*", "*training_args*"]
_ENCODER_SETTINGS = (ENCODER_MARK, "1_Pooling/config.json", "sentence_bert_config.json")
_HUB_TIMEOUT_S = 5
_SAMPLES = (
    "Hello, world! 10 hours and 0 minutes to go",
    "naïve café — 夜は長い 🌙\n\n\tdef f(x): return x**2",
    "  two  spaces and a trailing one ",
)


def convert(source: Path, target: Path, dtype: str, *, what: str) -> dict[str, str]:
    """Read a model folder or a GGUF file and write the store's files into the folder `target`, which exists.

    what: the model's name in messages. Returns the versions of what converted it. Raises ModelError.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        import torch
        import transformers
    except ModuleNotFoundError as missing:
        raise ModelError(
            f"adding a model needs the package {missing.name}: pip install 'overnight[transformers]'"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if is_encoder(source):
        return _copy_encoder(source, target, getattr(torch, dtype), transformers, what)
    file = {"gguf_file": source.name} if source.suffix == ".gguf" else {}
    try:
        with _in_utf8(source.parent if file else source) as folder:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, **file)
            _check_template(tokenizer, what)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), local_files_only=True, **file
            )
        _forget_origin(model)
        model.save_pretrained(str(target))
        tokenizer.save_pretrained(str(target))
        again = transformers.AutoTokenizer.from_pretrained(str(target), local_files_only=True)
    except (ModelError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - transformers raises whatever its parts raise
        raise ModelError(f"{what} cannot be read by transformers: {first_line(error)}") from None
    _check_same(tokenizer, again, what)
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def _copy_encoder(source: Path, target: Path, dtype: Any, transformers: Any, what: str) -> dict[str, str]:
    """An encoder of sentence-transformers: its weights in that dtype, and the settings that say how to pool."""
    try:
        with _in_utf8(source) as folder:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = transformers.AutoModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
        _forget_origin(model)
        model.save_pretrained(str(target))
        tokenizer.save_pretrained(str(target))
        for name in _ENCODER_SETTINGS:
            if (source / name).is_file():
                (target / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source / name, target / name)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - transformers raises whatever its parts raise
        raise ModelError(f"{what} cannot be read by transformers: {first_line(error)}") from None
    return {name: sys.modules[name].__version__ for name in ("torch", "transformers")}


@contextlib.contextmanager
def _in_utf8(folder: Path) -> Iterator[str]:
    """The folder by a name that is UTF-8, if need be through a link: the tokenizers library opens no other."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory(prefix="overnight-") as place:
            link = Path(place, "model")
            link.symlink_to(folder)
            yield str(link)
    else:
        yield str(folder)


def _forget_origin(model: Any) -> None:
    """Make the saved files depend on the weights alone, and not on their quantisation or their path."""
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if name in vars(model):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = ""


def _check_template(tokenizer: Any, what: str) -> None:
    try:
        tokenizer.get_chat_template()
    except ValueError:
        raise ModelError(
            f"{what} has no chat template: it cannot hold a conversation (look for its -Instruct or -chat variant)"
        ) from None


def _check_same(before: Any, after: Any, what: str) -> None:
    samples = (*_SAMPLES, "".join(str(token) for token in before.all_special_tokens))
    same = before.get_chat_template() == after.get_chat_template() and all(
        before.encode(text, add_special_tokens=False) == after.encode(text, add_special_tokens=False)
        for text in samples
    )
    if not same:
        raise ModelError(
            f"{what}: the saved tokenizer gives other tokens than the original; this is a bug, please report it"
        )


class HubModel:
    """A model on the hub: asked for its size first, then fetched. Every failure is one ModelError, within seconds."""

    def __init__(self, repo: str) -> None:
        """Ask the hub, once. Raises ModelError."""
        os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(_HUB_TIMEOUT_S))
        os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "10")
        os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_TELEMETRY="1")
        try:
            import huggingface_hub
        except ModuleNotFoundError:
            raise ModelError(
                f"{repo} is a hub id and needs the package huggingface_hub: pip install 'overnight[transformers]'"
            ) from None
        self._hub = huggingface_hub
        self.repo = repo
        try:
            info = huggingface_hub.HfApi().model_info(repo, files_metadata=True, timeout=_HUB_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - the hub's client raises its own and its libraries' errors
            raise self._failed(error) from None
        wanted = huggingface_hub.utils.filter_repo_objects(
            list(info.siblings or []),
            allow_patterns=DOWNLOAD_PATTERNS,
            ignore_patterns=_NO_DOWNLOAD,
            key=lambda file: file.rfilename,
        )
        self.revision: str | None = info.sha
        self.download_bytes = sum(int(file.size or 0) for file in wanted)
        self.params = int(info.safetensors.total) if info.safetensors is not None else 0
        if not self.params:
            raise ModelError(f"{repo} holds no safetensors weights; download and convert it, then add its folder")

    def fetch(self, target: Path) -> Path:
        """Download into `target`. Raises ModelError."""
        try:
            found = self._hub.snapshot_download(
                self.repo,
                revision=self.revision,
                local_dir=target,
                allow_patterns=DOWNLOAD_PATTERNS,
                ignore_patterns=_NO_DOWNLOAD,
                etag_timeout=_HUB_TIMEOUT_S,
            )
        except Exception as error:  # noqa: BLE001 - as above
            raise self._failed(error) from None
        return Path(found)

    def _failed(self, error: Exception) -> ModelError:
        kind = type(error).__name__
        if kind in ("RepositoryNotFoundError", "GatedRepoError", "HFValidationError"):
            why = "there is no such model, or it needs a login (`hf auth login`)"
        elif kind == "OfflineModeIsEnabled":
            why = "HF_HUB_OFFLINE is set"
        elif re.search("connect|timeout|network|resolve", f"{kind} {error}", re.IGNORECASE):
            why = "the hub cannot be reached; with a network, or from a local folder, it can be added"
        else:
            why = f"{kind}: {first_line(error)}"
        return ModelError(f"{self.repo} is neither in the store nor a local path, and from the hub: {why}")
