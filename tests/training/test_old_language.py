"""Held to what it was, in text without new tokens: a gradient that is off, or the wrong text, would keep nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.training.test_distributed import needs_deepspeed, require_same_adapter, run
from tests.training.test_loss import adapted, batch
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoModelForCausalLM

from yangtuo.config.expand import ExpandConfig
from yangtuo.config.prepare import PrepareConfig
from yangtuo.config.pretrain import PretrainConfig
from yangtuo.config.sft import SftConfig
from yangtuo.config.tokenizer_merge import TokenizerMergeConfig
from yangtuo.config.tokenizer_train import TokenizerTrainConfig
from yangtuo.errors import ConfigError, LineageError, TrainingError
from yangtuo.stages import expand, prepare, pretrain, sft, tokenizer_merge, tokenizer_train
from yangtuo.training import loss, old_language
from yangtuo.vocab.encoding import load_encoder
from yangtuo.weights import loading

ENGLISH = (
    "Every morning the old man walked to the market and bought three apples.",
    "To install the package, open a terminal, type the command and wait.",
    "In winter the mountains are white with snow, and in summer the fields are yellow.",
)
FIRST_NEW = 380


def test_a_document_is_of_the_old_language_where_hardly_a_token_is_new() -> None:
    old, new = torch.full((20,), 5), torch.full((20,), FIRST_NEW)
    mixed = old.clone()
    mixed[3] = FIRST_NEW
    ids = torch.stack([torch.cat([old, new]), torch.cat([mixed, old])])
    positions = torch.arange(20).repeat(2, 2)
    positions[1, :20] += 7  # the rest of a document that began in an earlier block
    is_old = old_language.in_old_language(ids, positions, FIRST_NEW)
    assert is_old[0].tolist() == [True] * 20 + [False] * 20
    assert is_old[1].all()
    assert not old_language.in_old_language(ids[:, 20:], positions[:, 20:], 0).any()


@pytest.mark.parametrize("embeddings", ["full", "new", "frozen"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_gradient_is_that_of_cross_entropy_and_divergence(
    pico_model: Path, pico_tied_model: Path, embeddings: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_SLICE_ELEMENTS", 400 * 7)
    monkeypatch.setattr(loss, "_WIDE_ELEMENTS", {"cpu": 400 * 2})
    path, inputs, coefficient = pico_tied_model if tied else pico_model, batch(), 0.7
    inputs["input_ids"] %= FIRST_NEW
    inputs["input_ids"][2] = FIRST_NEW  # the second row learns nothing, the third is of the new language
    plain, sliced = (adapted(path, embeddings, sliced=is_sliced) for is_sliced in (False, True))

    given = {name: inputs[name] for name in ("input_ids", "position_ids")}
    logits = plain(**given, use_cache=False).logits[:, :-1]
    with torch.no_grad(), plain.disable_adapter():
        expected = plain(**given, use_cache=False).logits[:, :-1]
    targets = inputs["labels"][:, 1:]
    nats = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    learned = targets[0] != -100
    distance = kl_div(
        logits[0][learned].log_softmax(-1), expected[0][learned].log_softmax(-1), log_target=True, reduction="sum"
    )
    ((nats + coefficient * distance) / 7).backward()

    kept = old_language.reference(sliced, given, FIRST_NEW, coefficient, None)
    value = sliced(**inputs, num_items_in_batch=7, reference=kept, use_cache=False).loss
    value.backward()
    torch.testing.assert_close(value, nats / 7)
    gradients = dict(plain.named_parameters())
    for name, parameter in sliced.named_parameters():
        assert parameter.requires_grad == gradients[name].requires_grad, name
        if parameter.requires_grad:
            torch.testing.assert_close(
                parameter.grad, gradients[name].grad, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: n + m
            )


def test_rows_that_do_not_count_are_not_held(pico_model: Path) -> None:
    model, inputs = adapted(pico_model, "frozen", sliced=True), batch()
    assert old_language.reference(model, inputs, 0, 1.0, None) is None
    assert old_language.reference(model, inputs, 400, 1.0, torch.zeros(3)) is None
    kept = old_language.reference(model, inputs, 400, 1.0, torch.tensor([0, 1, 0]))
    assert kept is not None
    assert kept.shares.view(3, -1).any(dim=1).tolist() == [False, True, False]


@pytest.fixture(scope="module")
def grown(pico_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A grown model and a dataset in both languages."""
    directory = tmp_path_factory.mktemp("grown")
    made = {name: directory / name for name in ("pieces", "tokenizer", "model", "data")}
    for language, texts in (("zh", ("河流边的苹果树", "苹果在河流里漂")), ("en", ENGLISH)):
        (directory / language).mkdir()
        for number, text in enumerate(texts):
            (directory / language / f"{number}.txt").write_text(f"{text}\n" * 8, encoding="utf-8")
    base, pieces, tokenizer = str(pico_model), str(made["pieces"]), made["tokenizer"]
    tokenizer_train.run(
        TokenizerTrainConfig(base=base, corpus=(str(directory / "zh"),), size=12, output=made["pieces"])
    )
    tokenizer_merge.run(TokenizerMergeConfig(base=base, pieces=pieces, output=tokenizer))
    expand.run(ExpandConfig(model=base, tokenizer=str(tokenizer), output=made["model"]))
    sources = tuple(f"{language}={directory / language}" for language in ("zh", "en"))
    prepare.run(
        PrepareConfig(source=sources, tokenizer=str(made["model"]), block_size=64, held_out=0, output=made["data"])
    )
    return made


def config(grown: dict[str, Path], output: Path, **changed) -> PretrainConfig:
    values = {"rank": 4, "learning_rate": 3e-3, "dtype": "float32", "max_steps": 40, "batch_size": 4}
    return PretrainConfig(model=str(grown["model"]), data=str(grown["data"]), output=output, **(values | changed))


def test_english_stays_nearer_to_what_the_model_said_before(grown: dict[str, Path], tmp_path: Path) -> None:
    encoder = load_encoder(grown["model"])
    ids = [torch.tensor([encoder.encode(text)]) for text in ENGLISH]
    before = AutoModelForCausalLM.from_pretrained(grown["model"])
    distances = {}
    for coefficient in (0.0, 20.0):
        output = tmp_path / f"{coefficient:g}"
        pretrain.run(config(grown, output, kl_coef=coefficient))
        after = loading.load_adapter(loading.load_model(grown["model"], dtype=torch.float32), output)
        with torch.no_grad():
            distances[coefficient] = sum(
                float(
                    kl_div(
                        after(row).logits.log_softmax(-1),
                        before(row).logits.log_softmax(-1),
                        log_target=True,
                        reduction="batchmean",
                    )
                )
                for row in ids
            )
    assert distances[20.0] < 0.6 * distances[0.0]


@pytest.mark.parametrize("sharding", ["none", pytest.param("zero2", marks=needs_deepspeed)])
def test_two_processes_are_held_as_one(grown: dict[str, Path], sharding: str, tmp_path: Path) -> None:
    values = {"model": str(grown["model"]), "data": str(grown["data"]), "kl_coef": 3, "dtype": "float32", "rank": 4}
    values |= {"max_steps": 6, "batch_size": 4, "learning_rate": 3e-3}
    losses = run(values, tmp_path / "whole", 1)
    assert run({**values, "sharding": sharding}, tmp_path / "shared", 2) == pytest.approx(losses, rel=2e-4)
    require_same_adapter(tmp_path / "whole", tmp_path / "shared")


def test_what_cannot_be_held_is_refused(grown: dict[str, Path], pico_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "adapter"
    with pytest.raises(LineageError, match="no new tokens"):
        pretrain.run(config({**grown, "model": pico_model}, output, kl_coef=1.0))
    with pytest.raises(ConfigError, match="--kl-coef 1"):
        pretrain.run(config(grown, output, kl_coef=1.0, rank=0))
    with pytest.raises(ConfigError, match="--sharding zero2"):
        pretrain.run(config(grown, output, kl_coef=1.0, sharding="fsdp2"))
    for dry_run in (True, False):
        with pytest.raises(TrainingError, match="a head with a LoRA of its own"):
            lora = {"embeddings": "frozen", "lora": ('target_modules=["q_proj","lm_head"]',)}
            pretrain.run(config(grown, output, kl_coef=1.0, dry_run=dry_run, **lora))
    with pytest.raises(ConfigError, match="no --replay"):
        sft.run(SftConfig(model=str(grown["model"]), data=("rows.json",), output=output, kl_coef=1.0))
    assert not output.exists()
