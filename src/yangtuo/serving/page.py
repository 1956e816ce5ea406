"""The web page: chat, completion and a comparison of two models, over any server of the OpenAI API.

It keeps nothing on the server: a talk lies in the browser's own storage, and is exported from there.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gradio as gr
import openai

_ENGLISH = {
    "title": "Yangtuo",
    "chat": "Chat",
    "completion": "Completion",
    "compare": "Compare",
    "model": "Model",
    "left": "Left",
    "right": "Right",
    "say": "Say something; Shift+Enter for a new line",
    "send": "Send",
    "stop": "Stop",
    "new": "New talk",
    "export": "Export",
    "settings": "Settings",
    "system": "System prompt",
    "temperature": "Temperature",
    "top_p": "Top-p",
    "max_tokens": "Longest reply",
    "text": "Text to continue",
    "continue": "Continue",
    "question": "Question for both",
}
_CHINESE = {
    "title": "羊驼",
    "chat": "对话",
    "completion": "续写",
    "compare": "对比",
    "model": "模型",
    "left": "左",
    "right": "右",
    "say": "请输入；Shift+Enter 换行",
    "send": "发送",
    "stop": "停止",
    "new": "新对话",
    "export": "导出",
    "settings": "设置",
    "system": "系统提示词",
    "temperature": "温度",
    "top_p": "Top-p",
    "max_tokens": "最长回复",
    "text": "要续写的文本",
    "continue": "续写",
    "question": "同一个问题",
}
Turns = list[dict[str, Any]]


class Page:
    """The page over one client; every browser has its own state."""

    def __init__(self, client: openai.OpenAI) -> None:
        self._client = client
        self._models = [model.id for model in client.models.list()]
        self.words = gr.I18n(en=_ENGLISH, zh=_CHINESE, **{"zh-CN": _CHINESE, "zh-TW": _CHINESE})

    def blocks(self) -> gr.Blocks:
        """The page itself."""
        words = self.words
        with gr.Blocks(title="Yangtuo 羊驼", analytics_enabled=False) as page:
            with gr.Tab(words("chat")):
                self._chat(page)
            with gr.Tab(words("completion")):
                self._completion()
            with gr.Tab(words("compare")):
                self._comparison()
        return page

    def _settings(self) -> list[Any]:
        words = self.words
        with gr.Accordion(words("settings"), open=False):
            temperature = gr.Slider(0, 2, 0.7, step=0.05, label=words("temperature"), elem_id="temperature")
            top_p = gr.Slider(0.05, 1, 0.9, step=0.05, label=words("top_p"))
            max_tokens = gr.Slider(1, 2048, 256, step=1, label=words("max_tokens"), elem_id="max-tokens")
        return [temperature, top_p, max_tokens]

    def _chat(self, page: gr.Blocks) -> None:
        words = self.words
        model = gr.Dropdown(self._models, value=self._models[0], label=words("model"))
        kept: Any = gr.BrowserState([], storage_key="yangtuo-talk")
        talk = gr.Chatbot(elem_id="talk", editable="user", allow_tags=False, buttons=["copy"], height=480)
        box = gr.Textbox("", placeholder=words("say"), show_label=False, elem_id="say", lines=1, max_lines=8)
        with gr.Row():
            send = gr.Button(words("send"), variant="primary", elem_id="send")
            stop = gr.Button(words("stop"), elem_id="stop")
            fresh = gr.Button(words("new"), elem_id="new")
            export = gr.DownloadButton(words("export"), elem_id="export")
        with gr.Accordion(words("settings"), open=False):
            system = gr.Textbox("", label=words("system"), lines=2, elem_id="system")
        settings = [model, system, *self._settings()]

        running = []
        for trigger in (send.click, box.submit):
            asked = trigger(_ask, [box, talk], [box, talk], queue=False)
            running.append(asked.then(self._reply, [talk, *settings], talk))
        running.append(talk.retry(_retry, talk, talk, queue=False).then(self._reply, [talk, *settings], talk))
        running.append(talk.edit(_edited, talk, talk, queue=False).then(self._reply, [talk, *settings], talk))
        for event in running:
            event.then(lambda turns: turns, talk, kept)
        stop.click(lambda turns: turns, talk, kept, cancels=running)
        talk.undo(_undo, talk, [talk, box], queue=False)
        fresh.click(lambda: ([], []), None, [talk, kept], cancels=running)
        export.click(_export, [talk, system], export)
        page.load(lambda turns: turns or [], kept, talk)

    def _completion(self) -> None:
        words = self.words
        model = gr.Dropdown(self._models, value=self._models[0], label=words("model"))
        text = gr.Textbox("", label=words("text"), lines=8, elem_id="text")
        with gr.Row():
            go = gr.Button(words("continue"), variant="primary", elem_id="continue")
            stop = gr.Button(words("stop"))
        settings = self._settings()
        running = go.click(self._continue, [text, model, *settings], text)
        stop.click(None, cancels=[running])

    def _comparison(self) -> None:
        words = self.words
        question = gr.Textbox("", label=words("question"), lines=3, elem_id="question")
        go = gr.Button(words("send"), variant="primary", elem_id="compare")
        with gr.Row():
            sides = []
            for side, name in (("left", self._models[0]), ("right", self._models[-1])):
                with gr.Column():
                    chosen = gr.Dropdown(self._models, value=name, label=words(side))
                    sides.append((chosen, gr.Textbox(label=words(side), lines=8, elem_id=side)))
        settings = self._settings()
        inputs = [question, *(chosen for chosen, _ in sides), *settings]
        go.click(self._compare, inputs, [answer for _, answer in sides])

    def _reply(self, turns: Turns, model: str, system: str, *settings: Any) -> Iterator[Turns]:
        if not turns or turns[-1]["role"] != "user":
            return
        first = [{"role": "system", "content": system}] if system.strip() else []
        messages = [*first, *({"role": turn["role"], "content": _text(turn)} for turn in turns)]
        text = ""
        for part in self._stream(messages, model, *settings):
            text += part
            yield [*turns, {"role": "assistant", "content": text}]

    def _compare(self, question: str, left: str, right: str, *settings: Any) -> Iterator[tuple[str, str]]:
        messages = [{"role": "user", "content": question}]
        texts = ["", ""]
        for parts in zip_longest(*(self._stream(messages, model, *settings) for model in (left, right)), fillvalue=""):
            texts = [text + part for text, part in zip(texts, parts, strict=True)]
            yield texts[0], texts[1]

    def _stream(self, messages: Any, model: str, temperature: float, top_p: float, max_tokens: int) -> Iterator[str]:
        try:
            with self._client.chat.completions.create(
                model=model,
                messages=messages,
                temperature=temperature,
                top_p=top_p,
                max_tokens=int(max_tokens),
                stream=True,
            ) as stream:
                for chunk in stream:
                    if chunk.choices and chunk.choices[0].delta.content:
                        yield chunk.choices[0].delta.content
        except openai.APIError as error:
            raise gr.Error(error.message) from error

    def _continue(self, text: str, model: str, temperature: float, top_p: float, max_tokens: int) -> Iterator[str]:
        try:
            with self._client.completions.create(
                model=model, prompt=text, temperature=temperature, top_p=top_p, max_tokens=int(max_tokens), stream=True
            ) as stream:
                for chunk in stream:
                    text += chunk.choices[0].text if chunk.choices else ""
                    yield text
        except openai.APIError as error:
            raise gr.Error(error.message) from error


def _text(turn: dict[str, Any]) -> str:
    content = turn["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _ask(text: str, turns: Turns) -> tuple[str, Turns]:
    return "", [*turns, {"role": "user", "content": text}] if text.strip() else turns


def _retry(turns: Turns, event: gr.RetryData) -> Turns:
    return turns[: _index(event.index) + 1]


def _edited(turns: Turns, event: gr.EditData) -> Turns:
    index = _index(event.index)
    return [*turns[:index], {"role": "user", "content": str(event.value)}]


def _undo(turns: Turns, event: gr.UndoData) -> tuple[Turns, str]:
    index = _index(event.index)
    return turns[:index], _text(turns[index])


def _index(index: int | Sequence[int]) -> int:
    return index if isinstance(index, int) else index[0]


def _export(turns: Turns, system: str) -> str:
    first = [{"role": "system", "content": system}] if system.strip() else []
    messages = [*first, *({"role": turn["role"], "content": _text(turn)} for turn in turns)]
    path = Path(tempfile.mkdtemp(prefix="yangtuo-")) / "talk.json"
    path.write_text(json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return str(path)
