"""Which adapter belongs on which model: identity by fingerprint, never by size or name.

An adapter's manifest names the model that it was trained on. That model may itself be a merge; base and adapters in
order determine its lineage before anything is merged, so a whole chain is checked before any work. Foreign artifacts,
which have no manifest, are let through. This module knows no tensor and no token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from yangtuo.artifacts.manifest import Artifact, Parent, read_manifest
from yangtuo.errors import LineageError, UserError


def merged_lineage(base: Artifact, adapters: Sequence[Artifact]) -> str:
    """Fingerprint of a base with adapters folded in, in order; the same for one merge of two and two merges of one."""
    identity = base.lineage or base.identity
    for adapter in adapters:
        identity = _fold(identity, adapter)
    return identity


def check_chain(base: Artifact, adapters: Sequence[Artifact]) -> list[UserError]:
    """Errors, all at once, where an adapter was trained on another model, vocabulary or in another order."""
    misfits = _misfits(base, adapters)
    if misfits and len(adapters) > 1:
        order = _order(base, adapters)
        if not _misfits(base, order):
            names = ", ".join(str(adapter.path) for adapter in adapters)
            return [
                LineageError(
                    "the adapters are in the wrong order",
                    found=names,
                    expected="the order of their training",
                    run=_command(base, order),
                )
            ]
    errors: list[UserError] = [_misfit(base, adapters, index) for index in misfits]
    tokenizer = base.manifest.tokenizer if base.manifest else None
    for adapter in adapters:
        own = adapter.manifest.tokenizer if adapter.manifest else None
        if own and tokenizer and own != tokenizer:
            errors.append(
                LineageError(
                    f"{adapter.path} was trained with another tokenizer than {base.path}'s",
                    found=f"tokenizer {own[:12]}",
                    expected=f"tokenizer {tokenizer[:12]}",
                    run=f"yangtuo inspect {adapter.path}",
                )
            )
    return errors


def trained_on(adapter: Artifact) -> Parent | None:
    """The model that an adapter was trained on, where its manifest says so."""
    return adapter.manifest.parents.get("model") if adapter.manifest else None


def _misfits(base: Artifact, adapters: Sequence[Artifact]) -> list[int]:
    """Places of adapters that were not trained on what stands before them."""
    wrong = []
    identities = {base.fingerprint, base.identity, base.lineage} - {None}
    for index, adapter in enumerate(adapters):
        parent = trained_on(adapter)
        if parent and not {parent.fingerprint, parent.lineage} & identities:
            wrong.append(index)
        identities = {_fold(identity, adapter) for identity in identities if identity}
    return wrong


def _order(base: Artifact, adapters: Sequence[Artifact]) -> list[Artifact]:
    """The adapters, each in its turn the one that was trained on what stands before it, else one that does not say."""
    order, left = list[Artifact](), list(adapters)
    while left:
        fitting = [adapter for adapter in left if _misfits(base, [*order, adapter])[-1:] != [len(order)]]
        known = [adapter for adapter in fitting if trained_on(adapter)]
        chosen = [*known, *fitting, *left][0]
        order.append(chosen)
        left.remove(chosen)
    return order


def _misfit(base: Artifact, adapters: Sequence[Artifact], index: int) -> LineageError:
    adapter, before = adapters[index], adapters[:index]
    parent = trained_on(adapter)
    assert parent is not None
    here = Path(parent.path)
    manifest = read_manifest(here) if here.is_dir() else None
    found_again = manifest is not None and manifest.fingerprint == parent.fingerprint
    return LineageError(
        f"{adapter.path} was trained on another model",
        found=f"trained on {parent.path} (fingerprint {parent.fingerprint[:12]})",
        expected=" + ".join(str(artifact.path) for artifact in (base, *before)),
        run=f"yangtuo merge --base {here} --adapter {adapter.path} --output NAME"
        if found_again
        else f"yangtuo inspect {adapter.path}",
    )


def _command(base: Artifact, adapters: Sequence[Artifact]) -> str:
    return f"yangtuo merge --base {base.path} {' '.join(f'--adapter {a.path}' for a in adapters)} --output NAME"


def _fold(identity: str, adapter: Artifact) -> str:
    return hashlib.sha256(f"merge {identity} {adapter.identity}".encode()).hexdigest()
