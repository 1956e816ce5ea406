"""A merged model is what PEFT computes: every kind of adapter, tied and untied bases, in three number formats."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from yangtuo.errors import UserError, WeightsError
from yangtuo.weights.adapter import non_finite, open_adapter
from yangtuo.weights.checkpoint import write_weights
from yangtuo.weights.layouts import open_checkpoint
from yangtuo.weights.merging import MergedTensors

ATTENTION = ["q_proj", "v_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": "all-linear", "r": 4, "lora_alpha": 8},
    "rslora": {"target_modules": ATTENTION, "use_rslora": True, "lora_alpha": 3},
    "dora": {"target_modules": ATTENTION, "use_dora": True},
    "rank and alpha patterns": {
        "target_modules": ATTENTION,
        "rank_pattern": {"0.self_attn.q_proj": 6, "v_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 5},
    },
    "bias of the base": {"target_modules": ATTENTION, "bias": "all"},
    "bias of LoRA layers": {"target_modules": ATTENTION, "bias": "lora_only"},
    "bias of LoRA": {"target_modules": ATTENTION, "lora_bias": True},
    "saved norms": {"target_modules": ATTENTION, "modules_to_save": ["norm", "input_layernorm"]},
    "trained rows": {"target_modules": ATTENTION, "trainable_token_indices": [3, 14, 15]},
}
UNTIED_KINDS: dict[str, dict[str, Any]] = {
    "saved embedding and head": {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"]},
    "LoRA on embedding and head": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "DoRA on the embedding": {"target_modules": ["embed_tokens"], "use_dora": True},
    "rows of embedding and head": {
        "target_modules": ATTENTION,
        "trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [7, 2, 30]},
    },
}
TIED_KINDS: dict[str, dict[str, Any]] = {
    "saved embedding, head kept": {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]},
    "saved embedding and head": {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"]},
    "saved and kept tied": {
        "target_modules": ATTENTION,
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "LoRA on the head": {"target_modules": ["lm_head", "q_proj"]},
    "LoRA kept tied": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
}

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def write_base(directory: Path, *, tied: bool, dtype: torch.dtype = torch.float32, bias: bool = False) -> Path:
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        attention_bias=bias,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    model.to(dtype).save_pretrained(directory)
    return directory


def write_adapter(directory: Path, base: Path, options: Mapping[str, Any], seed: int = 5) -> Path:
    """Saves an adapter with random values, as PEFT does."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # PEFT warns of tied embeddings, which is what is tested
        torch.manual_seed(seed)
        model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", **{"r": 4, **options}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(directory)
    return directory


def load(path: Path, adapter: Path | None = None) -> Any:
    """The model at `path` in its own dtype, with an adapter on it."""
    model = AutoModelForCausalLM.from_pretrained(path)
    if adapter is None:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, adapter)


def merge(base: Path, adapters: list[Path], output: Path) -> Path:
    """Merges and writes a directory that transformers loads strictly."""
    checkpoint = open_checkpoint(base)
    opened = [open_adapter(path, path.name, output / "scratch") for path in adapters]
    tensors = MergedTensors(checkpoint.tensors, checkpoint.shape.tied, opened, None, checkpoint.shape.family)
    output.mkdir()
    write_weights(output, tensors, shard_size=20_000)
    config = {**checkpoint.config, "tie_word_embeddings": tensors.tied, "vocab_size": tensors.num_rows}
    (output / "config.json").write_text(json.dumps(config))
    return output


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        result: torch.Tensor = model.eval()(ids).logits
    return result


def assert_within_one_unit(ours: torch.Tensor, theirs: torch.Tensor, name: str) -> None:
    """At most one unit in the last place of the number format between two tensors."""
    assert ours.dtype == theirs.dtype, name
    beside = (
        torch.nextafter(theirs, torch.full_like(theirs, torch.inf)),
        torch.nextafter(theirs, torch.full_like(theirs, -torch.inf)),
    )
    assert bool(((ours == theirs) | (ours == beside[0]) | (ours == beside[1])).all()), name


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_equals_peft_exactly(tmp_path: Path, kind: str, tied: bool) -> None:
    base = write_base(tmp_path / "base", tied=tied, bias="bias" in kind)
    adapter = write_adapter(tmp_path / "adapter", base, KINDS[kind])
    merged = load(merge(base, [adapter], tmp_path / "merged"))
    reference = load(base, adapter).merge_and_unload().state_dict()
    assert merged.config.tie_word_embeddings == tied
    changed = 0
    for name, tensor in merged.state_dict().items():
        assert torch.equal(tensor, reference[name]), name
        changed += not torch.equal(tensor, load(base).state_dict()[name])
    assert changed, "the adapter must change something, or the test shows nothing"


@pytest.mark.parametrize("kind", UNTIED_KINDS)
def test_trained_vocabulary_of_untied_bases_equals_peft(tmp_path: Path, kind: str) -> None:
    base = write_base(tmp_path / "base", tied=False)
    adapter = write_adapter(tmp_path / "adapter", base, UNTIED_KINDS[kind])
    merged = load(merge(base, [adapter], tmp_path / "merged")).state_dict()
    reference = load(base, adapter).merge_and_unload().state_dict()
    assert not torch.equal(merged[EMBEDDING], load(base).state_dict()[EMBEDDING])
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, reference[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", TIED_KINDS)
def test_trained_vocabulary_of_tied_bases_computes_what_the_adapter_did(tmp_path: Path, kind: str) -> None:
    """PEFT's own merge loses a head trained apart from its tied embedding; the unmerged model is the truth."""
    base = write_base(tmp_path / "base", tied=True)
    adapter = write_adapter(tmp_path / "adapter", base, TIED_KINDS[kind])
    merged = load(merge(base, [adapter], tmp_path / "merged"))
    assert merged.config.tie_word_embeddings == ("kept tied" in kind)
    torch.testing.assert_close(logits(merged), logits(load(base, adapter)), rtol=1e-5, atol=1e-5)
    assert (logits(merged) - logits(load(base))).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["lora", "dora", "trained rows", "saved norms"])
def test_half_precision_is_within_one_unit_of_peft(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    base = write_base(tmp_path / "base", tied=False, dtype=dtype)
    adapter = write_adapter(tmp_path / "adapter", base, KINDS[kind])
    merged = load(merge(base, [adapter], tmp_path / "merged")).state_dict()
    reference = load(base, adapter).merge_and_unload().state_dict()
    assert merged[EMBEDDING].dtype == dtype
    for name, tensor in merged.items():
        if kind == "dora":  # PEFT takes the norm in half precision, we in float32
            torch.testing.assert_close(tensor, reference[name], rtol=2e-2, atol=1e-3)
        else:
            assert_within_one_unit(tensor, reference[name], name)


def test_two_adapters_in_order_equal_two_merges_of_peft(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied=False)
    first = write_adapter(tmp_path / "first", base, UNTIED_KINDS["saved embedding and head"])
    middle = tmp_path / "middle"
    load(base, first).merge_and_unload().save_pretrained(middle)
    second = write_adapter(tmp_path / "second", middle, {"target_modules": "all-linear", "use_dora": True}, seed=6)
    reference = load(middle, second).merge_and_unload().state_dict()
    merged = load(merge(base, [first, second], tmp_path / "merged")).state_dict()
    assert all(torch.equal(tensor, reference[name]) for name, tensor in merged.items())


def test_fan_in_fan_out_means_nothing_for_linear_layers(tmp_path: Path) -> None:
    """PEFT resets the flag for `torch.nn.Linear`; a merge that obeyed it would transpose what was trained straight."""
    base = write_base(tmp_path / "base", tied=False)
    adapter = write_adapter(tmp_path / "adapter", base, {"target_modules": ["q_proj"]})
    straight = open_checkpoint(merge(base, [adapter], tmp_path / "straight")).tensors
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": True}))
    turned = open_checkpoint(merge(base, [adapter], tmp_path / "turned")).tensors
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(turned.get(name), straight.get(name))
    assert not torch.equal(turned.get(name), open_checkpoint(base).tensors.get(name))


@pytest.mark.parametrize("flag", [True, False])
def test_layers_of_gpt_2_are_stored_as_in_by_out(tmp_path: Path, flag: bool) -> None:
    base = tmp_path / "base"
    config = GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(base)
    settings = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
    adapter = write_adapter(tmp_path / "adapter", base, settings)
    values = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**values, "fan_in_fan_out": flag}))
    merged = load(merge(base, [adapter], tmp_path / "merged"))
    torch.testing.assert_close(logits(merged), logits(load(base, adapter)), rtol=1e-4, atol=1e-5)


def test_a_grown_vocabulary_grows_the_model(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied=True)
    grown = load(base)
    grown.resize_token_embeddings(101, mean_resizing=False)
    grown.config.tie_word_embeddings = False
    grown.lm_head.weight = torch.nn.Parameter(grown.lm_head.weight.detach().clone())
    grown.save_pretrained(tmp_path / "grown")
    adapter = write_adapter(tmp_path / "adapter", tmp_path / "grown", UNTIED_KINDS["saved embedding and head"])
    merged = load(merge(base, [adapter], tmp_path / "merged"))
    assert merged.state_dict()[HEAD].shape == (101, 32) and not merged.config.tie_word_embeddings
    torch.testing.assert_close(logits(merged), logits(load(tmp_path / "grown", adapter)), rtol=1e-5, atol=1e-5)


def test_old_pickled_adapters_and_written_out_adapter_names_are_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base = write_base(tmp_path / "base", tied=False)
    adapter = write_adapter(tmp_path / "adapter", base, KINDS["lora"])
    old = tmp_path / "old"
    shutil.copytree(adapter, old)
    state = load_file(old / "adapter_model.safetensors")
    (old / "adapter_model.safetensors").unlink()
    renamed = {name.replace(".weight", ".default.weight"): value for name, value in state.items()}
    torch.save(renamed, old / "adapter_model.bin")
    new, from_old = (
        open_checkpoint(merge(base, [path], tmp_path / f"m-{path.name}")).tensors for path in (adapter, old)
    )
    assert all(torch.equal(new.get(name), from_old.get(name)) for name in new.names())


def spoil(adapter: Path, **changes: Any) -> Path:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return adapter


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"use_qalora": True}, "use_qalora"),
        ({"r": 8}, "rank 4 in A"),
        ({"use_dora": True}, "no magnitude"),
    ],
)
def test_adapters_that_cannot_be_folded_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    base = write_base(tmp_path / "base", tied=False)
    adapter = spoil(write_adapter(tmp_path / "adapter", base, {"target_modules": ["q_proj"]}), **changes)
    with pytest.raises(UserError, match=message):
        open_adapter(adapter, "adapter", tmp_path / "scratch")


def test_an_adapter_of_a_deeper_model_is_refused_with_all_problems(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied=False)
    adapter = write_adapter(tmp_path / "adapter", base, {"target_modules": ["q_proj"]})
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    state = load_file(file)
    prefix = "base_model.model.model.layers"
    state[f"{prefix}.9.self_attn.q_proj.lora_A.weight"] = torch.ones(4, 32)
    state[f"{prefix}.9.self_attn.q_proj.lora_B.weight"] = torch.ones(32, 4)
    state[f"{prefix}.0.self_attn.q_proj.lora_A.weight"] = torch.ones(4, 31)
    save_file(state, file)
    opened = open_adapter(adapter, "wrong", tmp_path)
    with pytest.raises(WeightsError) as caught:
        MergedTensors(open_checkpoint(base).tensors, False, [opened], None)
    assert "layers.9" in str(caught.value) and "(32, 31)" in str(caught.value)


def test_not_a_number_in_an_adapter_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = write_base(tmp_path / "base", tied=False)
    adapter = write_adapter(tmp_path / "adapter", base, {"target_modules": ["q_proj"]})
    file = adapter / "adapter_model.safetensors"
    state = load_file(file)
    name = sorted(state)[1]
    state[name][1, 2] = torch.nan
    save_file(state, file)
    errors = non_finite(open_adapter(adapter, "broken", tmp_path))
    assert [name in str(error) for error in errors] == [True]


def test_overflow_of_the_number_format_is_an_error(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied=False, dtype=torch.float16)
    adapter = spoil(write_adapter(tmp_path / "adapter", base, {"target_modules": ["q_proj"]}), lora_alpha=1e9)
    with pytest.raises(WeightsError, match="not finite after the merge"):
        merge(base, [adapter], tmp_path / "merged")
