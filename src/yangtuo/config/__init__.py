"""The options of every verb: a module and a frozen dataclass each.

Flags, YAML keys, `--help` and the reference page all come from these classes: a field is an option, its docstring the
help text, the class docstring the command's help. This package imports no heavy library, and its verbs' modules leave
annotations unquoted: a subclass's options are looked up in the subclass's module otherwise.
"""

from __future__ import annotations

from yangtuo.config.chat import ChatConfig
from yangtuo.config.convert import ConvertConfig
from yangtuo.config.evaluate import EvaluateConfig
from yangtuo.config.expand import ExpandConfig
from yangtuo.config.export import ExportConfig
from yangtuo.config.inspect import InspectConfig
from yangtuo.config.merge import MergeConfig
from yangtuo.config.options import StageConfig
from yangtuo.config.predict import PredictConfig
from yangtuo.config.prepare import PrepareConfig
from yangtuo.config.pretrain import PretrainConfig
from yangtuo.config.publish import PublishConfig
from yangtuo.config.serve import ServeConfig
from yangtuo.config.sft import SftConfig
from yangtuo.config.tokenizer_audit import TokenizerAuditConfig
from yangtuo.config.tokenizer_merge import TokenizerMergeConfig
from yangtuo.config.tokenizer_train import TokenizerTrainConfig
from yangtuo.config.web import WebConfig

STAGES: dict[str, type[StageConfig]] = {
    stage.verb: stage
    for stage in (
        ConvertConfig,
        TokenizerTrainConfig,
        TokenizerMergeConfig,
        TokenizerAuditConfig,
        ExpandConfig,
        PrepareConfig,
        PretrainConfig,
        SftConfig,
        MergeConfig,
        ExportConfig,
        EvaluateConfig,
    )
}
"""Verbs that write an artifact and can stand in a recipe."""

TOOLS: dict[str, type[StageConfig]] = {
    tool.verb: tool for tool in (ChatConfig, PredictConfig, ServeConfig, WebConfig, PublishConfig, InspectConfig)
}
"""Verbs that write no artifact."""
