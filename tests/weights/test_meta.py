"""Meta's layout in all its generations, against a sharding written out here by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from yangtuo.errors import FileError, UserError, WeightsError
from yangtuo.weights.layouts import open_checkpoint
from yangtuo.weights.meta import MetaTensors, to_halves, to_pairs
from yangtuo.weights.meta_writer import write_meta

HEADS, KEY_VALUE_HEADS, WIDTH, INSIDE, LAYERS = 16, 8, 64, 96, 2
HEAD_DIM = WIDTH // HEADS


def model(rows: int, *, tied: bool = False) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=WIDTH,
        intermediate_size=INSIDE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return LlamaForCausalLM(config)


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Row 2i of a head in Meta's order is row i in Hugging Face's, row 2i + 1 is row i + half."""
    result = torch.empty_like(weight)
    for head in range(heads):
        for index in range(HEAD_DIM // 2):
            start = head * HEAD_DIM
            result[start + 2 * index] = weight[start + index]
            result[start + 2 * index + 1] = weight[start + index + HEAD_DIM // 2]
    return result


def whole_state(source: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    state = source.state_dict()
    result = {
        "tok_embeddings.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for layer in range(LAYERS):
        ours, theirs = f"model.layers.{layer}", f"layers.{layer}"
        attention, feed = f"{theirs}.attention", f"{theirs}.feed_forward"
        result |= {
            f"{attention}.wq.weight": interleave(state[f"{ours}.self_attn.q_proj.weight"], HEADS),
            f"{attention}.wk.weight": interleave(state[f"{ours}.self_attn.k_proj.weight"], KEY_VALUE_HEADS),
            f"{attention}.wv.weight": state[f"{ours}.self_attn.v_proj.weight"],
            f"{attention}.wo.weight": state[f"{ours}.self_attn.o_proj.weight"],
            f"{feed}.w1.weight": state[f"{ours}.mlp.gate_proj.weight"],
            f"{feed}.w2.weight": state[f"{ours}.mlp.down_proj.weight"],
            f"{feed}.w3.weight": state[f"{ours}.mlp.up_proj.weight"],
            f"{theirs}.attention_norm.weight": state[f"{ours}.input_layernorm.weight"],
            f"{theirs}.ffn_norm.weight": state[f"{ours}.post_attention_layernorm.weight"],
        }
    return {name: tensor.clone() for name, tensor in result.items()}


def deal(state: dict[str, torch.Tensor], num_shards: int, embedding_axis: int) -> list[dict[str, torch.Tensor]]:
    """Fairscale's column- and row-parallel layers, written out."""
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(num_shards)]
    for name, tensor in state.items():
        for rank, shard in enumerate(shards):
            if "norm" in name:
                part = tensor
            elif name == "output.weight":  # an odd vocabulary: 24,976 + 24,977 in the published Chinese models
                cuts = [len(tensor) * step // num_shards for step in range(num_shards + 1)]
                part = tensor[cuts[rank] : cuts[rank + 1]]
            elif "wk" in name or "wv" in name:
                copies = max(1, num_shards // KEY_VALUE_HEADS)
                part = tensor.chunk(num_shards // copies)[rank // copies]
            else:
                by_columns = "wo" in name or "w2" in name or (name == "tok_embeddings.weight" and embedding_axis == 1)
                part = tensor.chunk(num_shards, dim=int(by_columns))[rank]
            shard[name] = part.clone()
        assert (
            num_shards == 1 or "norm" in name or any(len(s[name]) != len(tensor) for s in shards) or tensor.dim() == 2
        )
    return shards


def write(directory: Path, shards: list[dict[str, torch.Tensor]], **params: Any) -> Path:
    directory.mkdir(exist_ok=True)
    values = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KEY_VALUE_HEADS, "norm_eps": 1e-6}
    (directory / "params.json").write_text(json.dumps({**values, "vocab_size": -1, **params}))
    for rank, shard in enumerate(shards):
        torch.save(shard, directory / f"consolidated.{rank:02d}.pth")
    return directory


def assert_equal(path: Path, source: LlamaForCausalLM) -> None:
    tensors, state = MetaTensors(path), source.state_dict()
    assert set(tensors.names()) == set(state)
    for name, tensor in state.items():
        assert tensors.shape(name) == tuple(tensor.shape), name
        assert torch.equal(tensors.get(name), tensor), name


@pytest.mark.parametrize("embedding_axis", [0, 1], ids=["Llama 3", "before Llama 3"])
@pytest.mark.parametrize("num_shards", [1, 2, 4, 8, 16])
def test_any_number_of_shards_joins_to_the_same_model(tmp_path: Path, num_shards: int, embedding_axis: int) -> None:
    source = model(96)
    assert_equal(write(tmp_path / "meta", deal(whole_state(source), num_shards, embedding_axis)), source)


def test_an_odd_vocabulary_gives_unequal_head_shards(tmp_path: Path) -> None:
    source = model(97)
    shards = deal(whole_state(source), 2, embedding_axis=1)
    assert [len(shard["output.weight"]) for shard in shards] == [48, 49]
    assert_equal(write(tmp_path / "meta", shards), source)


def test_buffers_are_skipped_and_nested_params_and_states_are_found(tmp_path: Path) -> None:
    source = model(96)
    state = whole_state(source) | {
        "rope.freqs": torch.ones(2),
        "layers.0.attention.inner_attention.rope.freqs": torch.ones(2),
    }
    path = write(tmp_path / "meta", [{"model": state}])  # type: ignore[dict-item]
    params = json.loads((path / "params.json").read_text())
    (path / "params.json").write_text(json.dumps({"model": params}))
    assert_equal(path, source)


def test_safetensors_shards_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = model(96)
    path = write(tmp_path / "meta", [])
    for rank, shard in enumerate(deal(whole_state(source), 2, embedding_axis=0)):
        save_file(shard, path / f"consolidated.{rank:02d}.safetensors")
    assert_equal(path, source)


def test_a_head_that_equals_the_embedding_is_tied(tmp_path: Path) -> None:
    source = model(96, tied=True)
    tensors = MetaTensors(write(tmp_path / "meta", deal(whole_state(source), 2, embedding_axis=1)))
    assert tensors.tied and "lm_head.weight" not in tensors.names()


@pytest.mark.parametrize(
    ("params", "tied", "expected"),
    [
        ({"norm_eps": 1e-6}, False, (2048, 10000.0, None)),  # LLaMA 1
        ({"norm_eps": 1e-5}, False, (4096, 10000.0, None)),  # Llama 2
        ({"norm_eps": 1e-5, "rope_theta": 500000.0}, False, (8192, 500000.0, None)),  # Llama 3
        ({"norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True}, False, (131072, 500000.0, 8.0)),  # 3.1
        ({"norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True}, True, (131072, 500000.0, 32.0)),  # 3.2
    ],
)
def test_config_of_each_generation(
    tmp_path: Path, params: dict[str, Any], tied: bool, expected: tuple[int, float, float | None]
) -> None:
    config = open_checkpoint(write(tmp_path / "meta", [whole_state(model(96, tied=tied))], **params)).config
    scaling = config["rope_scaling"]
    found = (config["max_position_embeddings"], config["rope_theta"], scaling and scaling["factor"])
    assert found == expected
    assert (config["vocab_size"], config["intermediate_size"], config["num_key_value_heads"]) == (96, INSIDE, 8)
    assert config["tie_word_embeddings"] == tied
    LlamaConfig(**config)


def test_shards_of_different_models_are_refused(tmp_path: Path) -> None:
    shards = deal(whole_state(model(96)), 2, embedding_axis=1)
    shards[1]["layers.1.ffn_norm.weight"] += 1
    tensors = MetaTensors(write(tmp_path / "meta", shards))
    with pytest.raises(WeightsError, match=r"layers\.1\.ffn_norm\.weight differs between shards"):
        tensors.get("model.layers.1.post_attention_layernorm.weight")


def test_a_shard_missing_in_the_middle_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "meta", deal(whole_state(model(96)), 4, embedding_axis=1))
    (path / "consolidated.02.pth").unlink()
    with pytest.raises(FileError, match=r"consolidated\.02"):
        open_checkpoint(path)


def test_a_shard_missing_at_the_end_shows_in_the_shapes(tmp_path: Path) -> None:
    path = write(tmp_path / "meta", deal(whole_state(model(96)), 4, embedding_axis=1))
    (path / "consolidated.03.pth").unlink()
    with pytest.raises(WeightsError, match=r"wq\.weight .*does not fit params\.json"):
        open_checkpoint(path)


def test_params_that_lack_a_number_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "meta", [whole_state(model(96))])
    (path / "params.json").write_text('{"dim": 64, "n_heads": 16}')
    with pytest.raises(FileError, match="n_layers is missing"):
        open_checkpoint(path)


def test_the_two_row_orders_undo_each_other() -> None:
    weight = torch.randn(WIDTH, 5)
    assert torch.equal(to_pairs(to_halves(weight, HEADS), HEADS), weight)
    assert torch.equal(to_pairs(weight, HEADS), interleave(weight, HEADS))


@pytest.mark.parametrize("theta", [10000.0, 500000.0], ids=["before Llama 3", "Llama 3"])
@pytest.mark.parametrize("num_shards", [1, 2, 4, 8, 16])
def test_written_shards_are_those_of_the_sharding_by_hand(tmp_path: Path, num_shards: int, theta: float) -> None:
    source = model(97 if theta < 500000 else 96)
    source.save_pretrained(tmp_path / "hf")
    checkpoint = open_checkpoint(tmp_path / "hf")
    checkpoint.config.pop("rope_parameters", None)
    checkpoint.config["rope_theta"] = theta
    (tmp_path / "meta").mkdir()
    write_meta(tmp_path / "meta", checkpoint, num_shards)
    expected = deal(whole_state(source), num_shards, embedding_axis=0 if theta >= 500000 else 1)
    for rank, shard in enumerate(expected):
        written = torch.load(tmp_path / "meta" / f"consolidated.{rank:02d}.pth", weights_only=True)
        assert set(written) == set(shard)
        assert all(torch.equal(written[name], tensor) for name, tensor in shard.items())
    assert {path.name for path in (tmp_path / "meta").iterdir()} == {
        "params.json",
        *(f"consolidated.{rank:02d}.pth" for rank in range(num_shards)),
    }
    assert_equal(tmp_path / "meta", source)


@pytest.mark.parametrize(
    ("width", "inside"), [(4096, 11008), (4096, 14336), (8192, 28672), (64, 172), (64, 96), (64, 97)]
)
def test_metas_formula_gives_the_inner_size(width: int, inside: int) -> None:
    from yangtuo.weights.meta_writer import _inner_size

    params = _inner_size(width, inside)
    hidden = int(2 * (4 * width) / 3)  # as model.py of Meta's release computes it
    if "ffn_dim_multiplier" in params:
        hidden = int(params["ffn_dim_multiplier"] * hidden)
    assert params["multiple_of"] * ((hidden + params["multiple_of"] - 1) // params["multiple_of"]) == inside


def test_shards_that_the_heads_do_not_divide_into_are_refused(tmp_path: Path) -> None:
    model(96).save_pretrained(tmp_path / "hf")
    with pytest.raises(UserError, match="cannot be dealt to 3 shards"):
        write_meta(tmp_path, open_checkpoint(tmp_path / "hf"), 3)


def test_golden_logits_and_ids_of_a_real_model(shared_data: Path, tmp_path: Path) -> None:
    """A published English Llama says after conversion what its authors' code said."""
    from yangtuo.weights.checkpoint import write_weights

    golden = json.loads((shared_data / "models/stories260K/golden.json").read_text())
    checkpoint = open_checkpoint(shared_data / "models/stories260K")
    write_weights(tmp_path, checkpoint.tensors)
    (tmp_path / "config.json").write_text(json.dumps(checkpoint.config))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompt = torch.tensor([golden["prompt_ids"]])
    with torch.no_grad():
        last = loaded(prompt).logits[0, -1]
        ids = loaded.generate(prompt, max_new_tokens=100, do_sample=False, eos_token_id=None)[0, prompt.shape[1] :]
    assert (last[:8] - torch.tensor(golden["last_logits_first8"])).abs().max() < 1e-4
    assert ids.tolist() == golden["greedy_ids"]
