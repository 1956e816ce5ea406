"""The web page: chat, completion and a comparison of two models, over any server of the OpenAI API.

It keeps nothing on the server: a talk lies in the browser's own storage, and is exported from there. What is typed and
what comes is kept as it is; only the display is Markdown, in which no tag and no control token is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
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
Turns = list[dict[str, str]]
_LONGEST = 8192
"""Most tokens of a reply that can be asked for, where the model does not say less."""
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
_TAG = re.compile(r"(\\*)([<&])(?=[A-Za-z/!?#])")
_ESCAPED_TAG = re.compile(r"(\\+)([<&])(?=[A-Za-z/!?#])")
_DOWNLOAD = """(turns, system) => {
  const first = system.trim() ? [{role: "system", content: system}] : [];
  const text = JSON.stringify({messages: [...first, ...turns]}, null, 2) + "\\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "talk.json";
  link.click();
}"""


class Page:
    """The page over one client; every browser has its own state."""

    def __init__(self, client: openai.OpenAI) -> None:
        self._client = client
        models = list(client.models.list())
        self._models = [model.id for model in models]
        lengths = [length for model in models if (length := (model.model_extra or {}).get("max_model_len"))]
        self._longest = min([_LONGEST, *lengths])
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

    def _settings(self, *more: Any) -> list[Any]:
        words = self.words
        with gr.Accordion(words("settings"), open=False):
            for component in more:
                component.render()
            temperature = gr.Slider(0, 2, 0.7, step=0.05, label=words("temperature"), elem_id="temperature")
            top_p = gr.Slider(0.05, 1, 0.9, step=0.05, label=words("top_p"))
            usual = min(256, max(1, self._longest // 4))  # room for what is said, too
            max_tokens = gr.Slider(1, self._longest, usual, step=1, label=words("max_tokens"), elem_id="max-tokens")
        return [*more, temperature, top_p, max_tokens]

    def _model(self, label: str = "model", index: int = 0) -> Any:
        return gr.Dropdown(self._models, value=self._models[index], label=self.words(label))

    def _chat(self, page: gr.Blocks) -> None:
        words = self.words
        model = self._model()
        # The secret only makes it the browser's own across starts: what lies there is read by that browser alone.
        kept: Any = gr.BrowserState([], storage_key="yangtuo-talk", secret="yangtuo")
        said: Any = gr.State([])
        talk = gr.Chatbot(label=words("chat"), elem_id="talk", editable="user", buttons=["copy"], height=480)
        box = gr.Textbox("", placeholder=words("say"), show_label=False, elem_id="say", lines=1, max_lines=8)
        with gr.Row():
            send = gr.Button(words("send"), variant="primary", elem_id="send")
            stop = gr.Button(words("stop"), elem_id="stop")
            fresh = gr.Button(words("new"), elem_id="new")
            export = gr.Button(words("export"), elem_id="export")
        system = gr.Textbox("", label=words("system"), lines=2, elem_id="system", render=False)
        settings = [model, *self._settings(system)]

        asked = [trigger(_ask, [box, said], [box, talk, said], queue=False) for trigger in (send.click, box.submit)]
        asked.append(talk.retry(_retry, said, [talk, said], queue=False))
        asked.append(talk.edit(_edited, said, [talk, said], queue=False))
        running = [event.then(self._reply, [said, *settings], [talk, said]) for event in asked]
        for event in running:
            event.then(lambda turns: turns, said, kept)
        stop.click(lambda turns: turns, said, kept, cancels=running)
        talk.undo(_undo, said, [talk, said, box], queue=False).then(lambda turns: turns, said, kept)
        for clear in (fresh.click, talk.clear):
            clear(lambda: ([], [], []), None, [talk, said, kept], cancels=running)
        export.click(None, [kept, system], None, js=_DOWNLOAD)
        page.load(lambda turns: (_shown(turns), turns or []), kept, [talk, said])

    def _completion(self) -> None:
        words = self.words
        model = self._model()
        text = gr.Textbox("", label=words("text"), lines=8, elem_id="text")
        with gr.Row():
            go = gr.Button(words("continue"), variant="primary", elem_id="continue")
            stop = gr.Button(words("stop"))
        running = go.click(self._continue, [text, model, *self._settings()], text)
        stop.click(None, cancels=[running])

    def _comparison(self) -> None:
        words = self.words
        question = gr.Textbox("", label=words("question"), lines=3, elem_id="question")
        go = gr.Button(words("send"), variant="primary", elem_id="compare")
        models, answers = [], []
        with gr.Row():
            for side, index in (("left", 0), ("right", -1)):
                with gr.Column():
                    models.append(self._model(side, index))
                    answers.append(gr.Textbox(label=words(side), lines=8, elem_id=side))
        go.click(self._compare, [question, *models, *self._settings()], answers)

    def _reply(self, turns: Turns, model: str, system: str, *settings: Any) -> Iterator[tuple[Turns, Turns]]:
        """The talk with a reply that grows; the oldest turns are left out where the model has no room for them."""
        if not turns or turns[-1]["role"] != "user":
            return
        first = [{"role": "system", "content": system}] if system.strip() else []
        starts = [index for index, turn in enumerate(turns) if turn["role"] == "user"]
        text = ""
        for start in starts:
            try:
                with _told(openai.BadRequestError):
                    for part in self._stream(model, *settings, messages=[*first, *turns[start:]]):
                        text += part
                        said = [*turns, {"role": "assistant", "content": text}]
                        yield _shown(said), said
                break
            except openai.BadRequestError as error:
                if start == starts[-1] or "context" not in f"{error.code} {error.message}":
                    raise gr.Error(error.message) from error
        if start:
            gr.Info(f"前 {start} 条消息已超出模型的长度 · the first {start} messages no longer fit")

    def _compare(self, question: str, left: str, right: str, *settings: Any) -> Iterator[tuple[str, str]]:
        messages = [{"role": "user", "content": question}]
        texts = ["", ""]
        streams = [self._stream(model, *settings, messages=messages) for model in (left, right)]
        with _told():
            for parts in zip_longest(*streams, fillvalue=""):
                texts = [text + part for text, part in zip(texts, parts, strict=True)]
                yield texts[0], texts[1]

    def _continue(self, text: str, model: str, *settings: Any) -> Iterator[str]:
        with _told():
            for part in self._stream(model, *settings, prompt=text):
                text += part
                yield text

    def _stream(self, model: str, temperature: float, top_p: float, max_tokens: int, **what: Any) -> Iterator[str]:
        """What the model says to `messages`, or how it continues a `prompt`; raises what the client does."""
        asked = {"model": model, "temperature": temperature, "top_p": top_p, "max_tokens": int(max_tokens), **what}
        completions: Any = self._client.chat.completions if "messages" in what else self._client.completions
        with completions.create(**asked, stream=True) as stream:
            for chunk in stream:
                for choice in chunk.choices:
                    yield (choice.delta.content if "messages" in what else choice.text) or ""


@contextmanager
def _told(*others: type[Exception]) -> Iterator[None]:
    """Shows what the server says of a failure; `others` are left to the caller."""
    try:
        yield
    except others:
        raise
    except openai.APIError as error:
        raise gr.Error(error.message) from error


def _shown(turns: Turns) -> Turns:
    """The talk as the display takes it, in Markdown."""
    return [{**turn, "content": as_markdown(turn["content"])} for turn in turns or []]


def as_markdown(text: str) -> str:
    """Markdown that shows `text` with its tags and entities as they were written; what stands in code needs nothing."""
    return _outside_code(text, _TAG, lambda match: match[1] * 2 + "\\" + match[2])


def as_typed(markdown: str) -> str:
    """The text that `as_markdown` has made `markdown` of."""
    return _outside_code(markdown, _ESCAPED_TAG, lambda match: match[1][: len(match[1]) // 2] + match[2])


def _outside_code(text: str, pattern: re.Pattern[str], change: Any) -> str:
    parts = _CODE.split(text)
    return "".join(part if index % 2 else pattern.sub(change, part) for index, part in enumerate(parts))


def _ask(text: str, turns: Turns) -> tuple[str, Turns, Turns]:
    turns = [*turns, {"role": "user", "content": text}] if text.strip() else turns
    return "", _shown(turns), turns


def _retry(turns: Turns, event: gr.RetryData) -> tuple[Turns, Turns]:
    turns = turns[: _index(event.index) + 1]
    return _shown(turns), turns


def _edited(turns: Turns, event: gr.EditData) -> tuple[Turns, Turns]:
    turns = [*turns[: _index(event.index)], {"role": "user", "content": as_typed(str(event.value))}]
    return _shown(turns), turns


def _undo(turns: Turns, event: gr.UndoData) -> tuple[Turns, Turns, str]:
    index = _index(event.index)
    return _shown(turns[:index]), turns[:index], turns[index]["content"]


def _index(index: int | Sequence[int]) -> int:
    return index if isinstance(index, int) else index[0]
