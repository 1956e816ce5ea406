"""`yangtuo publish`: an artifact goes to a hub, private unless told otherwise, with a card made from its lineage.

What goes is what the manifest names, the card, and the manifest without the paths of this machine; nothing else, and
nothing that changed since it was made. Downloaded again, `yangtuo inspect --verify` agrees. An upload that was cut goes
on where it was.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from yangtuo import console, files, hub
from yangtuo.artifacts.fingerprints import digest
from yangtuo.artifacts.manifest import MANIFEST, Artifact, Kind, open_artifact
from yangtuo.artifacts.portable import history, stage_files
from yangtuo.config.publish import PublishConfig
from yangtuo.errors import FileError, LineageError, OutputError, raise_all
from yangtuo.evaluation.card import check_licence, find_base, write_card
from yangtuo.inference.cache import directory

_KINDS = (Kind.MODEL, Kind.ADAPTER, Kind.TOKENIZER, Kind.EXPORT)


def run(config: PublishConfig) -> dict[str, Any]:
    """Uploads `config.artifact` to `config.to` and says where it is; a dry run writes its card and lists its files."""
    check_licence(config.licence)
    hub.check_destination(config.to)
    artifact = open_artifact(config.artifact, *_KINDS)
    if artifact.manifest is None:
        raise FileError(
            f"{config.artifact} has no manifest: nothing is known of what it was made from",
            expected="an artifact of yangtuo",
            run=f"yangtuo convert --source {config.artifact} --output NAME",
        )
    made_from = history(artifact)
    scores = [open_artifact(reference, Kind.EVALUATION) for reference in config.scores]
    raise_all([error for score in scores for error in _check_measured(artifact, made_from, score)])
    card_file = config.card or Path(f"{artifact.path.resolve().name}-card.md")
    if config.dry_run and card_file.exists():
        raise OutputError(f"the card {card_file} exists and is never overwritten", run=f"mv {card_file} OTHER-NAME")
    if config.card is not None and not config.dry_run:
        card = files.read_text(config.card)
    else:
        card = write_card(artifact, made_from, scores, vars(config))
    base = config.base or find_base(artifact, made_from)
    where = directory() / ".publish" / digest([config.to, artifact.fingerprint, str(artifact.path.resolve())])[:24]
    manifest = stage_files(artifact, where, card, base)
    names = sorted([*manifest.files, MANIFEST])
    size = sum((where / name).stat().st_size for name in names)
    plan = {"to": config.to, "files": names, "bytes": size, "fingerprint": manifest.fingerprint}
    if config.dry_run:
        shutil.rmtree(where)
        card_file.write_text(card, encoding="utf-8")
        return {"card": str(card_file), **plan}
    console.note(
        f"{len(names)} files, {size / 1e6:,.1f} MB, to {config.to}, {'public' if config.public else 'private'}"
    )
    message = f"{manifest.kind} by yangtuo {manifest.stage}, {manifest.fingerprint[:12]}"
    done = hub.upload(
        where, config.to, is_public=config.public, licence=config.licence, message=message, listing=MANIFEST
    )
    shutil.rmtree(where)
    if config.public and done.is_private:
        console.warn(f"{config.to} was private before, and stays so: the hub's own page makes it public")
    seen = "private" if done.is_private else "public"
    return {"url": done.url, "revision": done.revision, "seen": seen, **plan}


def _check_measured(artifact: Artifact, made_from: list[Artifact], score: Artifact) -> list[LineageError]:
    """What speaks against figures on the card: that they are of something else than what is uploaded."""
    assert artifact.manifest is not None
    measured = score.manifest.parents if score.manifest else {}
    fitting = {artifact.fingerprint, artifact.identity}
    if artifact.manifest.kind == Kind.EXPORT:
        fitting |= {parent.fingerprint for parent in artifact.manifest.parents.values()}
    if score.manifest and score.manifest.stage == "tokenizer audit":
        fitting |= {ancestor.fingerprint for ancestor in made_from}
    if fitting & {parent.fingerprint for parent in measured.values()}:
        return []
    return [
        LineageError(
            f"{score.path} measured something else than {artifact.path}",
            found=", ".join(f"{parent.path} ({parent.fingerprint[:12]})" for parent in measured.values())
            or "no manifest",
            expected=f"figures of {artifact.path} ({artifact.fingerprint[:12]})",
            run=f"yangtuo evaluate --model {artifact.path} --suite bits-per-byte --data TEXT --output SCORES",
        )
    ]
