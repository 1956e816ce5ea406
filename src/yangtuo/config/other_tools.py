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
    **dict.fromkeys(("lora_target", "lora_target_modules", "target_modules"), "lora target_modules=…"),
    **dict.fromkeys(("variant", "use_dora"), "lora use_dora=true"),
    "use_rslora": "lora use_rslora=true",
    "lora_dropout": "lora lora_dropout=…",
    **dict.fromkeys(("finetuning_type", "full_finetuning", "use_peft", "use_lora"), "rank 0"),
    **dict.fromkeys(("modules_to_save", "additional_target", "lora_modules_to_save"), "embeddings"),
    **dict.fromkeys(("num_train_epochs", "num_epochs"), "epochs"),
    **dict.fromkeys(("lr", "learning_rates"), "learning_rate"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "schedule"), "trainer lr_scheduler_type=…"),
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
    **{
        name: f"trainer {name}=…"
        for name in ("optim", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon")
    },
    **{name: f"trainer {name}=…" for name in ("neftune_noise_alpha", "dataloader_num_workers", "torch_compile")},
    "optimizer": "trainer optim=…",
    **dict.fromkeys(("tensorboard", "use_wandb", "use_swanlab", "wandb_project", "logging_dir"), "report_to"),
}


def ours(word: str, known: Iterable[str]) -> str | None:
    """What an option of another tool is called here, with a value behind a space where one is meant, or None."""
    plain, names = word.removeprefix("--").replace("-", "_"), set(known)
    own = NAMES.get(plain)
    if own == "max_length" and own not in names:
        own = "block_size"
    return own if own is not None and plain not in names and own.split()[0] in names else None


def hint(word: str, known: Iterable[str]) -> str:
    """`; did you mean …?` for an unknown option, from names of other tools or from near spelling; or nothing."""
    names = list(known)
    near = get_close_matches(word.replace("-", "_"), names, n=1)
    own = ours(word, names) or (near[0] if near else None)
    return f"; did you mean {own!r}?" if own else ""


def hint_of_flags(arguments: Iterable[str], known: Iterable[str]) -> str | None:
    """What to say of the first flag on a command line that is another tool's; None where there is none."""
    names = list(known)
    for argument in arguments:
        flag = argument.partition("=")[0]
        own = ours(flag, names) if flag.startswith("--") else None
        if own is not None:
            option, space, value = own.partition(" ")
            return f"Unknown option: {flag}. Did you mean --{option.replace('_', '-')}{space}{value}?"
    return None
