"""Prompts are built as the pattern says, from examples that are read, drawn and told apart as they should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkin.errors import UserError
from bertkin.tasks.patterns import READY, Example, Pattern, drawn, prompt, read_examples, read_pattern

TEXT = st.text(st.sampled_from("ab {}inputo\n[MASK]é"), max_size=12)
WORDS = st.text(st.sampled_from("ab \n.:"), max_size=8)


# Patterns.


@given(before=WORDS, between=WORDS, after=WORDS, turned=st.booleans(), blank=st.booleans(), input=TEXT, output=TEXT)
def test_an_example_is_the_pattern_with_input_and_output_in_their_places(
    before: str, between: str, after: str, turned: bool, blank: bool, input: str, output: str
) -> None:
    mark = "[MASK]" if blank else "{output}"
    parts = (before, *((mark, between, "{input}") if turned else ("{input}", between, mark)), after)
    pattern = read_pattern("".join(parts))
    assert (pattern.text, pattern.blank) == ("".join(parts), blank)
    filled = [input if part == "{input}" else output if part == mark else part for part in parts]
    assert pattern.shown(input, output) == "".join(filled)  # whatever marks the input itself holds
    left, right = pattern.asked(input)
    assert left + output + right == pattern.shown(input, output)


@given(
    task=TEXT,
    shots=st.lists(st.tuples(TEXT, TEXT), max_size=4),
    given_=TEXT,
    pattern=st.sampled_from([*READY.values(), Pattern("{input} is ", "."), Pattern("", " it is: {input}")]),
)
def test_a_prompt_is_the_task_the_examples_and_the_input_in_this_order(
    task: str, shots: list[tuple[str, str]], given_: str, pattern: Pattern
) -> None:
    examples = [Example(*shot) for shot in shots]
    before, after = prompt(pattern, task, examples, given_)
    told = [task.strip()] * bool(task.strip()) + [pattern.shown(*shot) for shot in shots]
    assert before + "?" + after == pattern.parting.join([*told, pattern.shown(given_, "?")])
    if shots:  # taking the first example away leaves the rest as it was
        fewer, _ = prompt(pattern, task, examples[1:], given_)
        assert before.replace(pattern.shown(*shots[0]) + pattern.parting, "", 1).endswith(
            fewer.removeprefix(task.strip())
        )


def test_ready_patterns_read_as_published() -> None:
    shots = [Example("sea otter", "loutre de mer")]
    assert prompt(READY["translation"], "Translate English to French:", shots, "cheese")[0] == (
        "Translate English to French:\nsea otter => loutre de mer\ncheese => "
    )
    assert prompt(READY["summary"], "", [], "A long text.")[0] == "A long text.\nTL;DR: "
    assert read_pattern("qa").parting == "\n\n"


def test_a_pattern_is_a_name_a_file_or_the_text_itself(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Q: {input}\nA: {output}\n\n", encoding="utf-8")
    assert read_pattern(str(file)) == read_pattern("Q: {input}\\nA: {output}") == Pattern("Q: {input}\nA: ")
    assert read_pattern("{input} is [MASK].") == Pattern("{input} is ", ".", blank=True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{input} is what", "no {output} or [MASK]"),
        ("what is {output}", "no {input}"),
        ("what is {inptu}", "no {input}"),
        ("{input} {output} {output}", "2 places"),
        ("{input} {output} [MASK]", "2 places"),
        ("tranlsation", "did you mean translation or"),
    ],
)
def test_a_pattern_without_its_parts_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        read_pattern(text)
    assert complaint in str(caught.value) and "--pattern" in str(caught.value)


def test_a_file_that_holds_no_pattern_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(b"{input} \xff")
    with pytest.raises(UserError, match=r"mine.txt: cannot be read \(not UTF-8\)"):
        read_pattern(str(file))
    file.write_text("nothing")
    with pytest.raises(UserError, match=r"mine.txt: the pattern has no \{input\}"):
        read_pattern(str(file))


# Examples.

ROWS = [("a dog", "animal"), ("a saw", "tool"), ('l\'été, "chaud"', "season")]


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl"])
def test_examples_are_read_from_any_table(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"some.{ending}"
    quoted = [(f'"{a.replace(chr(34), chr(34) * 2)}"', b) for a, b in ROWS]
    content = {
        "tsv": "n\tinput\toutput\n" + "".join(f"{n}\t{a}\t{b}\n" for n, (a, b) in enumerate(ROWS)),
        "csv": "input,output\n" + "".join(f"{a},{b}\n" for a, b in quoted),
        "jsonl": "".join(json.dumps({"input": a, "output": b, "n": 1}) + "\n" for a, b in ROWS),
    }
    file.write_text(content[ending], encoding="utf-8")
    found = read_examples(file)
    assert [(row.input, row.output) for row in found] == ROWS
    assert found[0].where == f"{file}:{1 if ending == 'jsonl' else 2}"


def test_columns_may_have_other_names_and_labels_be_numbers(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n')
    assert [row.output for row in read_examples(file, ("text", "label"))] == ["1", "0"]
    with pytest.raises(UserError, match=r"no column 'input'; choose with --columns among: text, label"):
        read_examples(file)


def test_two_columns_need_no_header(tmp_path: Path) -> None:
    file = tmp_path / "some.tsv"
    file.write_text("dog\tchien\ncat\tchat\nsea otter\tloutre de mer\n")
    assert read_examples(file)[0].input == "dog"
    (tmp_path / "three.tsv").write_text("1\tdog\tchien\n2\tcat\tchat\n3\tcow\tvache\n")
    with pytest.raises(UserError, match="no column 'input'; let the first line name them"):
        read_examples(tmp_path / "three.tsv")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "empty"),
        ("input\toutput\n", "holds no examples"),
        ("input\toutput\na\t\nb\tc\n", ":2: 'output' is empty"),
        ("input\toutput\na\tb\nc\n", ":3: 1 column"),
    ],
)
def test_a_file_without_examples_is_named(tmp_path: Path, content: str, complaint: str) -> None:
    file = tmp_path / "some.tsv"
    file.write_text(content)
    with pytest.raises(UserError, match=complaint) as caught:
        read_examples(file)
    assert str(file) in str(caught.value)


def test_a_row_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text('{"input": "a", "output": "b"}\n{"input": "a", "output": ["b"]}\n')
    with pytest.raises(UserError, match=r"some.jsonl:2: 'output' holds a list, not text"):
        read_examples(file)
    for gap in ('{"input": "a"}', '{"input": "a", "output": NaN}'):
        file.write_text('{"input": "a", "output": 1.5}\n' + gap + "\n")
        with pytest.raises(UserError, match=r"some.jsonl:2: no 'output'"):
            read_examples(file)


# Drawing.


@settings(max_examples=200)
@given(n=st.integers(1, 30), shots=st.integers(0, 30), seed=st.integers(0, 99), but=st.integers(0, 29))
def test_drawn_examples_are_others_than_the_one_asked_and_fewer_are_among_more(
    n: int, shots: int, seed: int, but: int
) -> None:
    found = drawn(n, shots, seed=seed, but=but)
    assert len(found) == len(set(found)) == min(shots, n - (but < n))
    assert but not in found and all(0 <= i < n for i in found)
    assert found[: shots // 2] == drawn(n, shots // 2, seed=seed, but=but)
    everyone = drawn(n, n, seed=seed)
    assert found == [i for i in everyone if i != but][:shots]


def test_other_seeds_draw_other_examples_and_so_may_other_rows() -> None:
    assert len({tuple(drawn(50, 4, seed=seed)) for seed in range(20)}) == 20
    assert len({tuple(drawn(50, 4, seed=0, row=row)) for row in range(20)}) == 20
