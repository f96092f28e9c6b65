"""The report of a run and the curves in it."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertkin.train.charts import Curve, braille, svg, thin, ticks
from bertkin.train.progress import QuietListener, RichListener, clock
from bertkin.train.report import curve_svg, page, write_report

FILLS = [{"text": "the <b> [MASK]", "answers": [["cat", 0.5], ["<dog>", 0.25]], "truth": "cat"}]
RECORDS: list[dict[str, Any]] = [
    {"kind": "step", "step": 1, "tokens": 512, "minutes": 0.1, "loss": 9.0, "accuracy": 0.01, "lr": 1e-3}
    | {"rate": 0.3, "gradient_norm": 1.0, "tokens_per_second": 900.0, "progress": 0.5},
    {"kind": "step", "step": 2, "tokens": 1024, "minutes": 0.2, "loss": None, "accuracy": 0.02, "lr": 5e-4}
    | {"rate": 0.3, "gradient_norm": 1.0, "tokens_per_second": 1000.0, "progress": 1.0},
    {"kind": "evaluation", "step": 2, "tokens": 1024, "minutes": 0.2, "loss": 8.5, "accuracy": 0.1},
    {"kind": "samples", "step": 2, "fills": FILLS},
    {"kind": "baselines", "step": 2, "frequent": 0.05, "bigram": 0.15},
]


class Tags(HTMLParser):
    """Collects tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def write_run(folder: Path, lines: list[str]) -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_text("preset: modern-mini\ntrain:\n  steps: 2 # <not a tag>\n")
    (folder / "log.jsonl").write_text("\n".join(lines))
    return write_report(folder)


def test_the_report_stands_alone_and_shows_everything(tmp_path: Path) -> None:
    text = write_run(tmp_path / "run", [json.dumps(r) for r in RECORDS]).read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    names = [tag for tag, _ in tags.tags]
    assert names.count("svg") == 4
    assert not {"script", "link", "img", "iframe"} & set(names)
    assert not [a for _, a in tags.tags if "src" in a or "href" in a]
    assert "url(" not in text
    assert ("meta", {"name": "viewport", "content": "width=device-width,initial-scale=1"}) in tags.tags
    for part in (
        "Loss",
        "Accuracy",
        "15% masked",
        "Learning rate",
        "Throughput",
        "held-out loss 8.5 at 2",
        "bigram",
        "8.500",
    ):
        assert part in text
    assert "&lt;dog&gt;" in text
    assert "&lt;not a tag&gt;" in text
    assert "<dog>" not in text


def test_the_report_says_what_the_loss_is_of() -> None:
    writer = page("run", "preset: gpt2-mini\nobjective:\n  kind: causal\n", RECORDS)
    assert "every token" in writer and "15% masked" not in writer and "bertkin generate run" in writer
    filler = page("run", "preset: bert-mini\nobjective:\n  kind: masked\n", RECORDS)
    assert "15% masked" in filler and "bertkin fill run" in filler


@pytest.mark.parametrize("cut", [0, 1, 30, 400, 700, 1000])
def test_a_log_cut_anywhere_still_gives_a_report(tmp_path: Path, cut: int) -> None:
    whole = "\n".join(json.dumps(r) for r in RECORDS)
    assert write_run(tmp_path / "run", [whole[:cut]]).stat().st_size > 1000


def test_a_folder_without_a_log_gives_a_report(tmp_path: Path) -> None:
    assert "nothing yet" in write_report(tmp_path).read_text(encoding="utf-8")


def test_the_loss_curve_is_a_picture_of_its_own(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [json.dumps(r) for r in RECORDS])
    tree = ElementTree.fromstring(curve_svg(tmp_path / "run"))
    assert tree.tag.endswith("svg")
    assert len(tree.findall(".//{*}polyline")) == 2


records = st.fixed_dictionaries(
    {"kind": st.sampled_from(["step", "evaluation", "samples", "baselines", "else"])},
    optional={
        name: st.one_of(st.none(), st.floats(), st.integers(0, 10**9), st.text(max_size=3))
        for name in ("step", "loss", "accuracy", "lr", "tokens_per_second", "tokens", "minutes", "frequent", "bigram")
    },
)


@given(st.lists(records, max_size=8))
def test_no_log_makes_the_page_stumble(made: list[dict[str, Any]]) -> None:
    assert page("run", "", made).endswith("</html>\n")


numbers = st.floats(-1e9, 1e9)


@given(st.lists(st.tuples(numbers, numbers), max_size=400).map(lambda p: sorted(set(p))))
def test_curves_stay_inside_their_frame(points: list[tuple[float, float]]) -> None:
    chart = svg([Curve("c", points, accent=True)], label="l", x_form=str, y_form=str)
    for x, y in re.findall(r'<circle class="ring" cx="([^"]+)" cy="([^"]+)"', chart):
        assert 0 <= float(x) <= 480
        assert 0 <= float(y) <= 260
    lines = braille(points, width=20, height=4)
    assert {len(line.split("┤")[1]) for line in lines} <= {20}
    assert len(lines) == (4 if points else 0)


@given(st.lists(st.tuples(numbers, st.one_of(numbers, st.just(math.nan))), max_size=300), st.integers(1, 50))
def test_thinning_keeps_the_mean_and_drops_what_is_no_number(points: list[tuple[float, float]], most: int) -> None:
    kept = thin(points, most)
    assert len(kept) <= most or len(kept) <= len(points)
    assert all(math.isfinite(y) for _, y in kept)


@given(numbers, st.floats(1e-6, 1e9))
def test_ticks_are_few_and_inside(low: float, width: float) -> None:
    high = low + width
    found = ticks(low, high)
    slack = 1e-6 * width + 1e-12 * abs(low)  # what rounding may do to a narrow range far from zero
    assert len(found) <= 12
    assert all(low - slack <= t <= high + slack for t in found)


def test_without_a_terminal_lines_stand_for_the_bar() -> None:
    from rich.console import Console

    console = Console(record=True, width=200, force_terminal=False, file=open("/dev/null", "w"))  # noqa: SIM115
    listener = RichListener(console)
    listener.preparing(0, 0, "training a tokenizer")
    for i in range(1, 101):
        listener.step(RECORDS[0] | {"step": i, "progress": i / 100})
    listener.evaluation(RECORDS[2])
    listener.close()
    text = console.export_text()
    assert text.count("training:") == 2  # the first and the last
    assert "training a tokenizer …" in text
    assert "held-out loss 8.500 · accuracy 10.0%" in text


def test_on_a_terminal_the_bar_goes_when_it_is_done() -> None:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=160, highlight=False)
    listener = RichListener(console)
    listener.preparing(5, 10, "preparing the corpus")
    listener.step(RECORDS[0])
    listener.message("[MASK] stays as it is")
    listener.close()
    listener.close()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "loss 9.000" in text
    assert "[MASK] stays" in text


def test_the_quiet_listener_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    listener = QuietListener()
    listener.message("x")
    listener.step(RECORDS[0])
    listener.evaluation(RECORDS[2])
    listener.close()
    assert capsys.readouterr() == ("", "")


def test_durations_are_written_as_people_write_them() -> None:
    assert [clock(s) for s in (0, 59, 61, 3723)] == ["0 s", "59 s", "1:01", "1:02:03"]
