"""Random models of a few thousand parameters with the real architectures and templates, made in a second.

Their replies are noise of bytes and control tokens, which is what a test of exact resume wants: much of it does not
survive text -> ids, some of it is cut-off UTF-8, some of it looks like thinking.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import chat_templates as templates

SYSTEM = "You are alone tonight. Nobody asks for anything. Use the hours however you like. Ünïcode ✓"
_CORPUS = [
    SYSTEM,
    "10 hours and 0 minutes to go\n9 hours and 58 minutes to go\n",
    "system\nuser\nassistant\nmodel\n Cutting Knowledge Date: December 2023\nToday Date: 01 Jan 2025\n\n",
    "The night is long and the house is quiet; nobody asks for anything.",
] * 4


@dataclass(frozen=True)
class Kind:
    """One family: its template, its control tokens (`loud` ones are sampled often) and its config."""

    template: str
    special: tuple[str, ...]
    bos: str | None
    eos: str
    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    plain_added: tuple[str, ...] = ()
    loud: tuple[str, ...] = ()


_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_GEMMA = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
_THINK = ("<think>", "</think>")

KINDS = {
    "smollm2": Kind(templates.SMOLLM2, _CHATML, None, "<|im_end|>", "LlamaConfig", {"tie_word_embeddings": True}),
    "qwen3": Kind(
        templates.QWEN3, _CHATML, None, "<|im_end|>", "Qwen3Config", plain_added=_THINK, loud=(*_THINK, "<|im_end|>")
    ),
    "llama3": Kind(templates.LLAMA32, _LLAMA, "<|begin_of_text|>", "<|eot_id|>", "LlamaConfig", loud=("<|eot_id|>",)),
    "gemma2": Kind(
        templates.GEMMA2, _GEMMA, "<bos>", "<eos>", "Gemma2Config", {"sliding_window": 16}, loud=("<end_of_turn>",)
    ),
    "gemma3": Kind(
        templates.GEMMA3, _GEMMA, "<bos>", "<eos>", "Gemma3TextConfig", {"sliding_window": 16}, loud=("<end_of_turn>",)
    ),
    "zephyr": Kind(
        templates.ZEPHYR, ("<s>", "</s>"), "<s>", "</s>", "MistralConfig", {"sliding_window": 24}, loud=("</s>",)
    ),
}


def make(
    folder: Path, kind: str, *, seed: int = 0, dtype: str = "float32", template: str | None = None, **settings: Any
) -> Path:
    """Write a model folder of this kind, as a hub's download would look. Returns `folder`. settings: of its config."""
    import torch
    import transformers

    family = KINDS[kind]
    tokenizer = make_tokenizer(kind, template=template)
    torch.manual_seed(seed)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "initializer_range": 0.4,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
    }
    config = getattr(transformers, family.config)(**{**shape, **family.settings, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    with torch.no_grad():
        for token in family.loud:
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(token)] *= 3.0
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def make_tokenizer(kind: str, *, template: str | None = None) -> Any:
    """A byte-level BPE tokenizer of some 330 tokens. Like the real ones, it adds a first token unless told not to."""
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    family = KINDS[kind]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=list(family.special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    raw.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.plain_added])
    if family.bos is not None:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, raw.token_to_id(family.bos))]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=family.eos,
        additional_special_tokens=list(family.special),
        **({"bos_token": family.bos} if family.bos is not None else {}),
    )
    tokenizer.chat_template = family.template if template is None else template
    return tokenizer


def spec(*, temperature: float = 1.0, thinking: bool | None = None, **sampling: Any) -> dict[str, Any]:
    """What a session reads of a cell's specification."""
    return {
        "system": SYSTEM,
        "template_date": "2025-01-01",
        "model": {"thinking": thinking},
        "sampling": {"temperature": temperature, "top_p": 1.0, "top_k": 0, **sampling},
        "threads": 1,
    }


def make_gguf(file: Path, *, template: str | None = templates.SMOLLM2) -> Path:
    """Write a GGUF file of a tiny random Llama, as the converters of llama.cpp do. Returns `file`."""
    import gguf
    import numpy as np

    tokenizer = make_tokenizer("smollm2")
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: int(item[1]))
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in state["model"]["merges"]]
    special = set(KINDS["smollm2"].special)
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in special else 1 for token, _ in vocabulary])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.convert_tokens_to_ids("<|im_start|>"))
    writer.add_eos_token_id(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    if template is not None:
        writer.add_chat_template(template)
    source = np.random.default_rng(0)
    shapes = {"token_embd": (len(vocabulary), 32), "output": (len(vocabulary), 32), "output_norm": (32,)}
    for block in range(2):
        parts = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_output": (32, 32)}
        parts |= {"attn_k": (16, 32), "attn_v": (16, 32)}
        parts |= {"ffn_gate": (48, 32), "ffn_up": (48, 32), "ffn_down": (32, 48)}
        shapes |= {f"blk.{block}.{part}": shape for part, shape in parts.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (source.standard_normal(shape) * 0.3).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
