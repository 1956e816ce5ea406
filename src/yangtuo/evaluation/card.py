"""A model card: what an artifact is and was made from, and what was measured of it under which conditions.

It is written from manifests alone, in the form that Hugging Face and ModelScope read (YAML, then Markdown), and says
nothing that they do not know. This module knows no hub.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any

import yaml

from yangtuo.artifacts.manifest import Artifact, Kind, Manifest
from yangtuo.artifacts.portable import portable_name, without_paths
from yangtuo.config import STAGES
from yangtuo.config.options import split_source
from yangtuo.errors import ConfigError, VocabularyError
from yangtuo.evaluation.results import headline
from yangtuo.vocab.scripts import scripts_of_language

LICENCES = (
    *("apache-2.0", "mit", "openrail", "openrail++", "bigscience-openrail-m", "creativeml-openrail-m"),
    *("bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause"),
    *("bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0"),
    *("cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0"),
    *("cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0"),
    *("etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1"),
    *("lgpl-3.0", "isc", "h-research", "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0"),
    *("odc-by", "odbl", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr"),
    *("deepfloyd-if-license", "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1", "llama3.2"),
    *("llama3.3", "llama4", "gemma", "unknown", "other"),
)
"""Names of licences as Hugging Face's model cards have them."""
_STARTS = ("model", "base", "source", "tokenizer")  # roles of parents, in the order that leads to the first base
_AMOUNTS = {"documents": "documents", "tokens": "tokens to train on"}
_TEXTS = {"sft": ("data", "conversations"), "tokenizer train": ("corpus", "for the tokenizer")}
"""By stage the option that names its texts, and what they were for."""
_TITLES = {Kind.MODEL: "a model", Kind.ADAPTER: "a PEFT adapter", Kind.TOKENIZER: "a tokenizer", Kind.EXPORT: "a model"}


def check_licence(name: str) -> None:
    """Raises `ConfigError` for a name that the hub does not know as that of a licence."""
    if name in LICENCES:
        return
    near = get_close_matches(name.lower().replace(" ", "-"), LICENCES, n=1)
    raise ConfigError(
        f"the hub knows no licence {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        expected="a name as in Hugging Face's model cards, such as apache-2.0, mit, llama2 or cc-by-nc-4.0; or other, "
        "with the licence itself in a card of yours (--card)",
    )


def find_base(artifact: Artifact, made_from: Sequence[Artifact]) -> str | None:
    """The hub id of what all of it began with, for an adapter that of its own base; None where it was a directory."""
    name = _base_name(artifact, made_from)
    return name if name is not None and "/" in name else None


def write_card(
    artifact: Artifact, made_from: Sequence[Artifact], scores: Sequence[Artifact], options: Mapping[str, Any]
) -> str:
    """The card of `artifact`; `made_from` ends with itself, `options` are those of `yangtuo publish`."""
    manifest = artifact.manifest
    assert manifest is not None
    base = options["base"] or _base_name(artifact, made_from)
    name = str(options["to"]).rpartition("/")[2]
    opening = f"{name} is {_TITLES[manifest.kind]}, made with Yangtuo by `yangtuo {manifest.stage}`"
    opening += f" from {_linked(base)}." if base else "."
    sections = [
        f"# {name}\n\n{opening}",
        _use(str(options["to"]), base, manifest),
        _figures(scores),
        _tokenizer([*made_from, *scores]),
        _data(made_from),
        _steps(made_from),
        _identity(str(options["to"]), manifest),
    ]
    head = yaml.safe_dump(_metadata(manifest, base, made_from, options), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _metadata(
    manifest: Manifest, base: str | None, made_from: Sequence[Artifact], options: Mapping[str, Any]
) -> dict[str, Any]:
    is_tokenizer, is_gguf = manifest.kind == Kind.TOKENIZER, manifest.details.get("format") == "gguf"
    relation = {Kind.ADAPTER: "adapter", Kind.EXPORT: "quantized"}.get(manifest.kind, "finetune")
    if manifest.kind == Kind.EXPORT and "adapter" in manifest.parents:
        relation = "adapter"
    values = {
        "license": options["licence"],
        "language": [*options["language"]] or _languages(made_from),
        "base_model": [base] if base and "/" in base and not base.startswith("modelscope:") else [],
        "base_model_relation": "" if is_tokenizer else relation,
        "library_name": "peft" if manifest.kind == Kind.ADAPTER else "" if is_gguf else "transformers",
        "pipeline_tag": "" if is_tokenizer else "text-generation",
        "tags": ["yangtuo", *(["gguf"] if is_gguf else [])],
    }
    if not values["base_model"]:
        values.pop("base_model_relation")
    return {key: value for key, value in values.items() if value}


def _base_name(artifact: Artifact, made_from: Sequence[Artifact]) -> str | None:
    """What the first artifact of the line was made from, without its place on this machine.

    For an adapter it is the very model that it goes on, which may have grown since.
    """
    by_print = {ancestor.fingerprint: ancestor for ancestor in made_from}
    current, name = artifact, None
    while current.manifest is not None:
        parent = next((current.manifest.parents[role] for role in _STARTS if role in current.manifest.parents), None)
        if parent is None:
            break
        name = portable_name(parent.path).rpartition("@")[0] or portable_name(parent.path)
        if "/" in name or current.manifest.kind == Kind.ADAPTER or parent.fingerprint not in by_print:
            break
        current = by_print[parent.fingerprint]
    return name


def _languages(made_from: Sequence[Artifact]) -> list[str]:
    names: dict[str, None] = {}
    for manifest in _manifests(made_from):
        if manifest.config.get("language"):
            names[str(manifest.config["language"])] = None
        names |= dict.fromkeys(manifest.details.get("sources", {}) if manifest.stage == "prepare" else ())
    return [name for name in names if _is_language(name)]


def _is_language(name: str) -> bool:
    try:
        scripts_of_language(name)
    except VocabularyError:
        return name == "en"
    return True


def _linked(name: str) -> str:
    if "/" not in name or name.startswith("modelscope:"):
        return f"`{name}`"
    return f"[{name}](https://huggingface.co/{name})"


def _use(to: str, base: str | None, manifest: Manifest) -> str:
    if manifest.kind == Kind.ADAPTER:
        command = f"yangtuo chat --model {base or 'BASE'} --adapter {to}"
    elif manifest.kind == Kind.TOKENIZER or ("adapter" in manifest.parents and manifest.kind == Kind.EXPORT):
        command = f"yangtuo inspect {to}"
    else:
        command = f"yangtuo chat --model {to}"
    return f"## Use\n\n    {command}\n\nThe files are in the layout that transformers, PEFT or llama.cpp read."


def _figures(scores: Sequence[Artifact]) -> str:
    rows: list[tuple[str, ...]] = []
    for manifest in _manifests(scores):
        if manifest.stage == "evaluate":
            rows += _evaluated(manifest)
    if not rows:
        return ""
    table = _table(("suite", "data", "model", "figure", "value"), rows)
    return f"## Figures\n\n{table}\n\nBits per byte: lower is better; shares, accuracies and F1: higher is better. " + (
        "In brackets, intervals of 95 %."
    )


def _evaluated(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    """Rows of figures, each with the conditions that it holds under."""
    details = manifest.details
    for model, by_data in details.get("results", {}).items():
        for data, figures in by_data.items():
            keys = ("num_documents", "num_questions", "num_shots")
            counted = {key: figures[key] for key in keys if isinstance(figures.get(key), int)}
            said = [f"{value:,} {key.removeprefix('num_')}" for key, value in counted.items()]
            said += [str(figures[key]) for key in ("asked", "prompt") if key in figures]
            where = f"{data} ({', '.join(said)})" if said else data
            for figure, value in headline(figures).items():
                yield str(details.get("suite", "")), without_paths(where), without_paths(model), figure, value


def _tokenizer(made_from: Sequence[Artifact]) -> str:
    """What the new tokens bring, by the merge and by audits."""
    lines = []
    for manifest in _manifests(made_from):
        details = manifest.details
        if manifest.stage == "tokenizer merge" and {"added", "base_vocabulary_size"} <= details.keys():
            lines.append(
                f"{details['added']:,} tokens were added to {details['base_vocabulary_size']:,}, "
                f"made of: {', '.join(details.get('script', ())) or 'any script'}."
            )
        elif manifest.stage == "tokenizer audit":
            rates = ("base_chars_per_token", "chars_per_token")
            rows = [
                (name, f"{row['characters']:,}", *(f"{row[rate]:.3f}" if rate in row else "" for rate in rates))
                for name, row in details.get("by_script", {}).items()
                if row.get("characters")
            ]
            lines.append(_table(("lines in", "characters", "per token, base", "per token, here"), rows))
            if (changed := details.get("changed_lines")) is not None:
                compared = f"{details.get('compared_lines', 0):,} lines with English, digits or code"
                lines.append(f"Of {compared}, {changed:,} are cut otherwise than before.")
            if {"dead_pieces", "lost_pieces", "engine_mismatch_lines", "num_lines"} <= details.keys():
                lines.append(
                    f"{details['dead_pieces']:,} new tokens can never be produced, {details['lost_pieces']:,} of the "
                    f"base are lost; engines disagree on {details['engine_mismatch_lines']:,} of "
                    f"{details['num_lines']:,} lines."
                )
    return "## Tokenizer\n\n" + "\n\n".join(lines) if lines else ""


def _data(made_from: Sequence[Artifact]) -> str:
    rows: list[tuple[str, ...]] = []
    for manifest in _manifests(made_from):
        if manifest.stage == "prepare":
            for name, row in manifest.details.get("sources", {}).items():
                amounts = (f"{row.get(key, 0):,} {said}" for key, said in _AMOUNTS.items())
                rows.append((name, *amounts))
        elif manifest.stage in _TEXTS:
            key, said = _TEXTS[manifest.stage]
            given = manifest.config.get(key)
            rows += [(split_source(str(source)).name, said, "") for source in given] if isinstance(given, list) else []
    shown = list(dict.fromkeys(tuple(map(str, without_paths(row))) for row in rows))
    return f"## Data\n\n{_table(('name', 'what', 'how much'), shown)}" if shown else ""


def _steps(made_from: Sequence[Artifact]) -> str:
    """The commands that made it, with the options that are not the defaults."""
    lines = []
    for artifact in made_from:
        manifest = artifact.manifest
        if manifest is None or manifest.stage not in STAGES:
            continue
        defaults = {
            item.name: None if item.default is MISSING else item.default for item in fields(STAGES[manifest.stage])
        }
        words = [f"yangtuo {manifest.stage}"]
        for key, value in manifest.config.items():
            given = tuple(value) if isinstance(value, list) else value
            if key == "output" or given is None or given == defaults.get(key):
                continue
            flag = f"--{key.replace('_', '-')}"
            if isinstance(given, bool):
                words.append(flag if given else flag.replace("--", "--no-", 1))
                continue
            for item in given if isinstance(given, tuple) else (given,):
                words.append(f"{flag} {shlex.quote(_by_name(str(item), made_from))}")
        lines.append("    " + " ".join([*words, f"--output {artifact.path.name}"]))
    return "## How it was made\n\n" + "\n".join(lines) if lines else ""


def _by_name(text: str, made_from: Sequence[Artifact]) -> str:
    """An option's value with artifacts and places by their names alone."""
    name, equals, path = text.rpartition("=")
    for artifact in made_from:
        if artifact.manifest and f"{artifact.path.resolve()}".endswith(f"/{path.lstrip('./')}"):
            return f"{name}{equals}{artifact.path.name}"
    return str(without_paths(text))


def _identity(to: str, manifest: Manifest) -> str:
    return (
        "## Identity\n\n`yangtuo.json` holds the SHA-256 of each file and the fingerprints of what it was made from. "
        f"To see that what was downloaded is what was uploaded:\n\n    yangtuo inspect {to} --verify\n\n"
        f"Made with Yangtuo {manifest.version}."
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells)


def _manifests(artifacts: Sequence[Artifact]) -> list[Manifest]:
    return [artifact.manifest for artifact in artifacts if artifact.manifest is not None]
