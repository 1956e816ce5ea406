"""What people would type who come from other tools (HF Trainer, PEFT, LLaMA-Factory, axolotl, TRL): name -> ours."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

NAMES = {
    **dict.fromkeys(("model_name_or_path", "base_model", "model_id", "pretrained_model"), "model"),
    **dict.fromkeys(("dataset", "datasets", "dataset_name", "train_file", "data_path"), "data"),
    **dict.fromkeys(("output_dir", "save_dir"), "output"),
    **dict.fromkeys(("lora_r", "lora_rank", "r", "lora_dim"), "rank"),
    "lora_alpha": "alpha",
    **dict.fromkeys(("use_dora", "use_rslora"), "variant"),
    **dict.fromkeys(("lora_dropout", "lora_target", "lora_target_modules", "target_modules"), "lora"),
    **dict.fromkeys(("modules_to_save", "additional_target", "lora_modules_to_save"), "embeddings"),
    **dict.fromkeys(("num_train_epochs", "num_epochs"), "epochs"),
    **dict.fromkeys(("lr", "learning_rates"), "learning_rate"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), "schedule"),
    **dict.fromkeys(("warmup_ratio", "warmup_steps"), "warmup"),
    **dict.fromkeys(("per_device_train_batch_size", "micro_batch_size", "train_batch_size"), "micro_batch"),
    **dict.fromkeys(("gradient_accumulation_steps", "global_batch_size"), "batch_size"),
    **dict.fromkeys(("cutoff_len", "max_seq_length", "max_seq_len", "sequence_len", "seq_length"), "max_length"),
    **dict.fromkeys(("bf16", "fp16", "torch_dtype", "load_in_4bit", "quantization_bit", "load_in_8bit"), "dtype"),
    **dict.fromkeys(("deepspeed", "fsdp"), "sharding"),
    **dict.fromkeys(("save_steps", "save_strategy"), "save_every"),
    **dict.fromkeys(("eval_steps", "eval_strategy", "evaluation_strategy"), "eval_every"),
    **dict.fromkeys(("val_size", "val_set_size", "eval_split", "test_size"), "held_out"),
    **dict.fromkeys(("load_best_model_at_end", "early_stopping"), "keep"),
    **dict.fromkeys(("early_stopping_patience",), "patience"),
    **dict.fromkeys(("flash_attn", "attn_implementation", "flash_attention", "use_flash_attention_2"), "attention"),
    **dict.fromkeys(("resume_from_checkpoint", "resume_lora_training", "adapter_name_or_path"), "adapter"),
    **dict.fromkeys(("chat_template", "prompt_template"), "template"),
    **dict.fromkeys(("optim", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2"), "trainer"),
    **dict.fromkeys(("neftune_noise_alpha", "dataloader_num_workers", "torch_compile"), "trainer"),
    **dict.fromkeys(("tensorboard", "use_wandb", "use_swanlab", "wandb_project", "logging_dir"), "report_to"),
}


def hint(word: str, known: Iterable[str]) -> str:
    """`; did you mean …?` for an unknown option, from names of other tools or from near spelling; or nothing."""
    names = list(known)
    plain = word.removeprefix("--").replace("-", "_")
    ours = NAMES.get(plain)
    if ours == "max_length" and ours not in names:
        ours = "block_size"
    if ours is None or ours not in names:
        near = get_close_matches(plain, names, n=1)
        ours = near[0] if near else None
    if ours is None:
        return ""
    door = f" {plain}=…" if ours in ("trainer", "lora") else ""
    return f"; did you mean {ours + door!r}?"
