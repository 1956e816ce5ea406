"""Architectures that transformers lacks, made known to its Auto classes by `register`."""

from __future__ import annotations


def register() -> None:
    """Lets AutoConfig, AutoTokenizer and AutoModelForCausalLM open ChatGLM-6B's directories, without code from them."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    from yangtuo.models.chatglm.config import ChatGLMConfig
    from yangtuo.models.chatglm.modeling import ChatGLMForConditionalGeneration, ChatGLMModel
    from yangtuo.models.chatglm.tokenizer import ChatGLMTokenizer

    AutoConfig.register("chatglm", ChatGLMConfig, exist_ok=True)
    AutoTokenizer.register(ChatGLMConfig, slow_tokenizer_class=ChatGLMTokenizer, exist_ok=True)
    AutoModel.register(ChatGLMConfig, ChatGLMModel, exist_ok=True)
    AutoModelForCausalLM.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)
