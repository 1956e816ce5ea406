"""Task vectors: what a tuned model learned is added to a grown one, in the rows that both name by the same ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from yangtuo.config.expand import ExpandConfig
from yangtuo.config.merge import MergeConfig
from yangtuo.config.tokenizer_merge import TokenizerMergeConfig
from yangtuo.errors import ConfigError, LineageError, UserError, WeightsError
from yangtuo.growing.task_vectors import split_difference
from yangtuo.stages import expand, merge, tokenizer_merge
from yangtuo.vocab.learn import sentencepiece_pieces

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def tune(base: Path, output: Path, amount: float = 0.01) -> Path:
    """A copy of the model with every tensor a little further on."""
    shutil.copytree(base, output)
    (output / "yangtuo.json").unlink(missing_ok=True)
    generator = torch.Generator().manual_seed(1)
    state = weights(base)
    moved = {name: value + amount * torch.randn(value.shape, generator=generator) for name, value in state.items()}
    save_file(moved, output / "model.safetensors", {"format": "pt"})
    return output


@pytest.fixture(params=["pico_model", "pico_tied_model"])
def road(request: pytest.FixtureRequest, tmp_path: Path, pico_tokenizer: Path) -> tuple[Path, Path, Path]:
    """A base, a model grown from it, and one tuned from it."""
    base: Path = request.getfixturevalue(request.param)
    grown, pieces, tokenizer = tmp_path / "grown", tmp_path / "pieces.model", tmp_path / "tokenizer"
    pieces.write_bytes(sentencepiece_pieces(["小", "镇", "小镇", "河"]))
    tokenizer_merge.run(TokenizerMergeConfig(base=str(pico_tokenizer), pieces=str(pieces), output=tokenizer))
    expand.run(ExpandConfig(model=str(base), tokenizer=str(tokenizer), output=grown))
    return base, grown, tune(base, tmp_path / "tuned")


def run(grown: Path, output: Path, *add: str, scale: float = 1.0) -> Path:
    return merge.run(MergeConfig(base=str(grown), add=add, scale=scale, output=output)).path


def test_old_rows_and_layers_take_the_difference_and_new_rows_stay(
    road: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, grown, tuned = road
    merged = weights(run(grown, tmp_path / "merged", f"{tuned}-{base}", scale=0.5))
    before, after, start = weights(base), weights(tuned), weights(grown)
    assert set(merged) == set(start)
    for name, value in merged.items():
        num_rows = len(before[name])
        expected = start[name][:num_rows] + 0.5 * (after[name] - before[name])
        torch.testing.assert_close(value[:num_rows], expected)
        assert torch.equal(value[num_rows:], start[name][num_rows:]), "new rows have no base to differ from"


def test_a_grown_base_plus_the_whole_difference_answers_as_the_tuned_model(
    road: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    base, grown, tuned = road
    merged = run(grown, tmp_path / "merged", f"{tuned} - {base}")
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        one, other = (AutoModelForCausalLM.from_pretrained(path).eval()(ids).logits for path in (merged, tuned))
    torch.testing.assert_close(one[..., : other.shape[-1]], other, atol=1e-5, rtol=1e-4)


def test_the_tuned_models_template_and_stop_ids_come_along(road: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, grown, tuned = road
    (tuned / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    (tuned / "generation_config.json").write_text('{"eos_token_id": [2, 7]}', encoding="utf-8")
    merged = run(grown, tmp_path / "merged", f"{tuned}-{base}")
    assert (merged / "chat_template.jinja").read_text(encoding="utf-8") == "{{ messages[0].content }}"
    assert json.loads((merged / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"] == [2, 7]


def test_a_model_that_did_not_grow_from_the_base_is_refused(road: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, grown, _ = road
    stranger = tune(base, tmp_path / "stranger", amount=10.0)
    with pytest.raises(LineageError, match="did not grow from"):
        run(grown, tmp_path / "merged", f"{tune(stranger, tmp_path / 'tuned-stranger')}-{stranger}")
    assert not (tmp_path / "merged").exists()


def test_models_of_other_shapes_and_ids_are_refused(road: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, grown, tuned = road
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    state = {name: tensor for name, tensor in weights(tuned).items() if ".layers.1." not in name}
    save_file(state, tuned / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="not of one shape"):
        run(grown, tmp_path / "merged", f"{tuned}-{base}")
    with pytest.raises(UserError, match="do not begin with"):
        run(base, tmp_path / "merged", f"{grown}-{grown}")


def test_differences_are_read_where_names_hold_hyphens(tmp_path: Path) -> None:
    for name in ("a-b", "a-b-instruct"):
        (tmp_path / name).mkdir()
    tuned, base = f"{tmp_path}/a-b-instruct", f"{tmp_path}/a-b"
    assert split_difference(f"{tuned}-{base}") == (tuned, base)
    assert split_difference("org/m-1b-chat - org/m-1b") == ("org/m-1b-chat", "org/m-1b")
    assert split_difference("org/chat-other/base") == ("org/chat", "other/base")
    with pytest.raises(ConfigError, match="spaces around the minus"):
        split_difference("nothing")


def test_nothing_to_merge_is_a_mistake(pico_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is to be merged"):
        run(pico_model, tmp_path / "merged")
