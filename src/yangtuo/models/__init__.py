"""Architectures that transformers lacks, made known to its Auto classes."""

from __future__ import annotations


def register_configs() -> None:
    """Lets AutoConfig open ChatGLM-6B's config.json; imports no modelling code, which takes seconds."""
    from transformers import AutoConfig

    from yangtuo.models.chatglm.config import ChatGLMConfig

    AutoConfig.register("chatglm", ChatGLMConfig, exist_ok=True)


def register() -> None:
    """Lets AutoConfig, AutoTokenizer and AutoModelForCausalLM open ChatGLM-6B's directories, without code from them."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    from yangtuo.models.chatglm.config import ChatGLMConfig
    from yangtuo.models.chatglm.modeling import ChatGLMForConditionalGeneration, ChatGLMModel
    from yangtuo.models.chatglm.tokenizer import ChatGLMTokenizer

    register_configs()
    AutoTokenizer.register(ChatGLMConfig, slow_tokenizer_class=ChatGLMTokenizer, exist_ok=True)
    AutoModel.register(ChatGLMConfig, ChatGLMModel, exist_ok=True)
    AutoModelForCausalLM.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)
