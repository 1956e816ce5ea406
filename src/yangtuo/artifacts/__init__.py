"""Artifacts: the directories that travel between stages.

An artifact is a directory in the ecosystem's own layout plus its manifest, `yangtuo.json`. A stage reads some and
writes exactly one, through `draft`. A directory without a manifest is foreign: accepted, and fingerprinted by its
files. This package knows no tensor, no token and no stage.
"""
