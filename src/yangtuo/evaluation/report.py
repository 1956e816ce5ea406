"""What an evaluation has shown, as one page: `report.html`. It draws what results hold and measures nothing."""

from __future__ import annotations

from collections.abc import Sequence

from yangtuo import page
from yangtuo.evaluation.results import Results, headline, summarise
from yangtuo.page import Block, Figures, Samples, Section, Table, Text
from yangtuo.page.charts import draw_intervals

REPORT_FILE = "report.html"
_NUM_SAMPLES, _NUM_ROWS = 8, 24
_FIGURES = (
    "bits_per_byte",
    "accuracy_over_subjects",
    "accuracy_over_questions",
    "accuracy",
    "overall",
    "f1",
    "share_right",
)


def evaluation_page(suite: str, results: Results, comparisons: Results) -> str:
    """The page of one evaluation."""
    names = ", ".join(results)
    return page.render(f"evaluation: {suite}", "评测", names, evaluation_sections(suite, results, comparisons))


def evaluation_sections(suite: str, results: Results, comparisons: Results) -> list[Section]:
    """Figures side by side with their intervals, what was lost or won, and answers of all models."""
    summary = summarise(results)
    datasets = list(next(iter(results.values())))
    sections = [Section(f"{suite}: side by side · 结果对比", [*_conditions(summary), *_pictures(summary, datasets)])]
    shown = {name: {data: headline(figures) for data, figures in row.items()} for name, row in summary.items()}
    cells = []
    for data in datasets:
        keys = dict.fromkeys(key for row in shown.values() for key in row[data])
        cells += [[data, key, *(row[data].get(key, "") for row in shown.values())] for key in keys]
    table = Table(["data · 数据", "figure · 指标", *shown], cells)
    sections.append(Section("All figures · 全部指标", [table], folded=len(cells) > _NUM_ROWS))
    if comparisons:
        sections.append(Section("Lost and won against the base · 相对原模型的得失", [_compared(comparisons)]))
    samples = _samples(results, datasets)
    if samples:
        sections.append(Section("Answers · 回答举例", [Samples(samples)]))
    return sections


def _conditions(summary: Results) -> list[Block]:
    """In which form an exam was asked: figures of different forms do not compare."""
    said = {
        name: f"{name} was asked {row['asked']}, in {row['prompt']}'s prompts, with {row['num_shots']} examples"
        for name, rows in summary.items()
        for row in rows.values()
        if "asked" in row
    }
    return [Text("; ".join(said.values()) + ".")] if said else []


def _pictures(summary: Results, datasets: Sequence[str]) -> list[Block]:
    pictures = []
    for data in datasets:
        rows = [(name, row[data]) for name, row in summary.items()]
        for figure in _FIGURES:
            if all(figure in values for _, values in rows) and (len(rows) > 1 or f"{figure}_interval" in rows[0][1]):
                drawn = [(name, values[figure], values.get(f"{figure}_interval")) for name, values in rows]
                pictures.append((f"{data}: {figure.replace('_', ' ')}", draw_intervals(drawn)))
                break
    return [Figures(pictures)] if pictures else []


def _compared(comparisons: Results) -> Table:
    rows = []
    for name, row in comparisons.items():
        for data, values in row.items():
            interval = values["difference_interval"]
            within = f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else ""
            figures = (f"{values[key]:.4f}" for key in ("base", "adapted"))
            rows.append(
                [name, data, values["figure"].replace("_", " "), *figures, f"{values['difference']:+.4f}", within]
            )
    columns = [
        "model · 模型",
        "data · 数据",
        "figure · 指标",
        "base · 原模型",
        "adapted · 训练后",
        "difference · 差",
        "95 %",
    ]
    return Table(columns, rows)


def _samples(results: Results, datasets: Sequence[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The first questions of each data set, not chosen by their outcome, with the reply of every model."""
    samples: list[tuple[str, list[tuple[str, str]]]] = []
    share = max(1, _NUM_SAMPLES // len(datasets))
    for data in datasets:
        answered = {name: row[data].get("replies", [])[:share] for name, row in results.items()}
        for index, first in enumerate(next(iter(answered.values()))):
            question = first.get("question") or f"{data} {first.get('subject', '')} {first.get('id') or index + 1}"
            expected = first.get("reference") or " / ".join(first.get("answers", ()))
            replies = [("expected · 参考", str(expected))] if expected else []
            for name, rows in answered.items():
                replies.append((name, str(rows[index].get("reply", rows[index].get("predicted", "")))))
            samples.append((question, replies))
    return samples
