"""What is read of models before they are loaded: manifests, configs, and headers whose lengths may lie."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzz import documents
from fuzz.target import Case, Target, check_harmless, check_line, expect, printed
from helpers.specs import scripted_spec
from overnight.cli import text
from overnight.dispatch import predict
from overnight.doctor import models as doctor_models
from overnight.engines import model_sizes, model_store
from overnight.errors import ModelError

_CONFIG = {
    **{"architectures": ["LlamaForCausalLM"], "dtype": "float32", "hidden_size": 576, "intermediate_size": 1536},
    **{"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64},
    **{"vocab_size": 49152, "max_position_embeddings": 2048, "rms_norm_eps": 1e-05, "text_config": None},
}


def _figure(count: int) -> str:
    """A size must be one that can be told and compared."""
    expect(isinstance(count, int) and 0 <= count < 2**63, "no size")
    return text.size(count)


class Manifests(Target):
    """model.json of the store: `list_models`, `locate`, doctor's look, the daemon's prediction."""

    name = "model.json"
    clear = (ModelError,)
    share = 0.5
    tokens = (b'"files":', b'"bytes":', b'"fingerprint":', b'"mtime_ns":', b'"name":"../x"', b'"v":1')

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder / "store" / "m--float32"
        self._folder.mkdir(parents=True)
        (self._folder / "config.json").write_text(json.dumps(_CONFIG))
        (self._folder / "model.safetensors").write_bytes(Safetensors.file({"a": [2, 3]}))
        versions = {"torch": "2.5.0"}
        found = model_store._describe(self._folder, "m", "org/m", "", "float32", versions)
        self._seed = model_store._manifest_bytes(found)

    def seeds(self) -> Sequence[bytes]:
        return [self._seed]

    def documents(self) -> Sequence[Any]:
        return [json.loads(self._seed)]

    def read(self, case: Case) -> str:
        (self._folder / model_store.MANIFEST).write_bytes(case.data)
        predict._read.cache_clear()
        store = self._folder.parent
        with contextlib.suppress(ModelError):
            predict.server_bytes({"engine": "transformers", "source": "m", "dtype": "float32"}, store)
        try:
            listed = model_store.list_models(store)
            rows = [(m.name, m.dtype, m.params, text.size(m.bytes), m.fingerprint[:16], m.source) for m in listed]
            with printed() as said:
                print(text.table(("name", "dtype", "parameters", "size", "fingerprint", "source"), rows))
                for each in map(doctor_models._stored, listed):
                    print(text.harmless(f"{each.name} {each.dtype} {_figure(each.weights_bytes)} {each.damage}"))
            check_harmless(said.getvalue())
            return f"{model_store.locate(store, 'm', 'float32') is not None}"
        finally:
            for left in self._folder.glob(".*.tmp"):
                left.unlink()


class Config(Target):
    """config.json, from which memory is predicted in the daemon itself."""

    name = "config.json"
    tokens = (b'"num_hidden_layers":', b'"head_dim":', b'"text_config":{', b'"dtype":"bfloat16"', b'"torch_dtype":')

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._store = folder / "store"
        self._folder = self._store / "m--float32"
        self._folder.mkdir(parents=True)
        facts = {"name": "m", "source": "m", "dtype": "float32", "bytes": 10, "v": 1}
        (self._folder / model_store.MANIFEST).write_text(json.dumps(facts))
        self._spec = {**scripted_spec(), "engine": "transformers"}
        self._spec["model"] = {**self._spec["model"], "source": "m"}
        self._source = folder / "source"
        self._source.mkdir()
        (self._source / "pytorch_model.bin").write_bytes(b"x" * 64)

    def seeds(self) -> Sequence[bytes]:
        return [json.dumps(each, indent=1).encode() for each in self.documents()]

    def documents(self) -> Sequence[Any]:
        return [
            _CONFIG,
            {"text_config": {**_CONFIG}},
            {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024},
        ]

    def read(self, case: Case) -> str:
        (self._folder / "config.json").write_bytes(case.data)
        predict._read.cache_clear()
        cell = predict.cell_bytes(self._spec, self._store)
        server = predict.server_bytes({"engine": "transformers", "source": "m", "dtype": "float32"}, self._store)
        expect(cell is None or 0 < cell < 2**63, "no claim can be that")
        _figure(server)
        (self._source / "config.json").write_bytes(case.data)
        try:
            _figure(model_sizes.folder_params(self._source))
        except ModelError as error:
            check_line(str(error))
            return f"{cell is not None} refused"
        return f"{cell is not None} taken"


class Safetensors(Target):
    """The header of weights: a length, then JSON."""

    name = "safetensors"
    clear = (ModelError,)
    tokens = (b'"shape":[', b'"dtype":"F32"', b'"__metadata__":', b"\xff" * 8, b"\0\0\0\0\1\0\0\0", b"\0\0\0\6\0\0\0\0")

    @staticmethod
    def file(shapes: dict[str, list[int]]) -> bytes:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for name, shape in shapes.items():
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [0, 24]}
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + bytes(24)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._source = folder / "source"
        self._source.mkdir()
        (self._source / "config.json").write_text("{}")

    def seeds(self) -> Sequence[bytes]:
        return [self.file({"a": [2, 3]}), self.file({"model.layers.0.q": [576, 576], "b": [], "c": [49152, 576]})]

    def documents(self) -> Sequence[Any]:
        return [json.loads(seed[8:-24]) for seed in self.seeds()]

    def render(self, document: Any) -> bytes:
        text = documents.dump(document).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(text)) + text + bytes(24)

    def read(self, case: Case) -> str:
        (self._source / "model.safetensors").write_bytes(case.data)
        return _figure(model_sizes.folder_params(self._source))


class Index(Safetensors):
    """model.safetensors.index.json: which files there are."""

    name = "safetensors index"
    tokens = (b'"weight_map":', b'"model-1.safetensors"', b'"../../x"')

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (self._source / "model-1.safetensors").write_bytes(self.file({"a": [2, 3]}))

    def documents(self) -> Sequence[Any]:
        return [
            {"metadata": {"total_size": 24}, "weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}
        ]

    def seeds(self) -> Sequence[bytes]:
        return [json.dumps(each).encode() for each in self.documents()]

    def render(self, document: Any) -> bytes:
        return documents.dump(document).encode("utf-8", "surrogatepass")

    def read(self, case: Case) -> str:
        (self._source / "model.safetensors.index.json").write_bytes(case.data)
        files = model_sizes.weight_files(self._source)
        expect(all(file.parent == self._source for file in files), "a file outside the model's folder")
        return _figure(model_sizes.folder_params(self._source))


class Gguf(Target):
    """A GGUF header, followed by a large empty hole, as a file of gigabytes has it."""

    name = "GGUF"
    clear = (ModelError,)
    tokens = (
        b"GGUF",
        b"\3\0\0\0",
        b"\xff" * 8,
        b"\0" * 12,
        b"\x09\0\0\0\x09\0\0\0",
        b"\x08\0\0\0",
        b"\0\0\0\0\0\0\0\x80",
    )

    def seeds(self) -> Sequence[bytes]:
        def string(text: bytes) -> bytes:
            return struct.pack("<Q", len(text)) + text

        pairs = [
            string(b"general.name") + struct.pack("<I", 8) + string(b"tiny"),
            string(b"general.alignment") + struct.pack("<II", 4, 32),
            string(b"tokenizer.ggml.tokens")
            + struct.pack("<IIQ", 9, 8, 3)
            + string(b"a")
            + string(b"b")
            + string(b"c"),
            string(b"tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, 3, 0.1, 0.2, 0.3),
            string(b"nested") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ2B", 0, 2, 1, 2),
        ]
        tensors = [
            string(b"blk.0.w") + struct.pack("<IQQIQ", 2, 64, 32, 0, 0),
            string(b"norm") + struct.pack("<IQIQ", 1, 64, 0, 8192),
        ]
        head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
        return [head + b"".join(pairs) + b"".join(tensors), b"GGUF" + struct.pack("<IQQ", 2, 1, 0) + tensors[0]]

    def read(self, case: Case) -> str:
        path = self.folder / "model.gguf"
        path.write_bytes(case.data)
        if len(case.data) % 2:
            with path.open("ab") as stream:
                stream.truncate(2**32)
        return _figure(model_sizes.gguf_params(path))
