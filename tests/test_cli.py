"""The command line as people meet it: every verb on real text, every mistake one line."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import bertkin
from bertkin.cli import main
from bertkin.config import Data, Model, Objective, Train, load_recipe
from bertkin.options import field_docs
from bertkin.train.state import read_log

SMALL = ["--preset", "modern-tiny", "--train.batch-tokens", "512", "--train.eval-rows", "8", "--train.threads", "1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, a tokenizer and a run, made by the commands that people type."""
    home = tmp_path_factory.mktemp("home")
    (home / "corpus").mkdir()
    for i, name in enumerate(sorted(topics)[:30]):
        (home / "corpus" / f"{i:02}.txt").write_text(topics[name], encoding="utf-8")
    corpus, tokenizer = str(home / "corpus"), str(home / "tokenizer")
    assert main(["tokenizer", "train", corpus, "--out", tokenizer, "--vocab-size", "1500"]) == 0
    out = str(home / "run")
    assert main(["pretrain", corpus, "--out", out, "--data.tokenizer", tokenizer, "--train.steps", "12", *SMALL]) == 0
    return home


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What went to standard error: one line, and nothing on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("bertkin: ")
    assert err.count("\n") == 1
    return err


def bertkin_process(*arguments: str, **more: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "bertkin", *arguments], **more)  # type: ignore[call-overload, no-any-return]


# Before anything runs.


@pytest.mark.parametrize("option", [["--objective", "hybrid"], ["--objective=hybrid"], ["--objective.kind", "hybrid"]])
def test_an_objective_is_chosen_by_its_name(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "corpus", "--preset", "gpt2-tiny", *option, "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["objective"]["kind"] == "hybrid"
    assert main(["pretrain", "corpus", "--preset", "gpt2-tiny", *option[:-1], option[-1].replace("hyb", "hib")]) == 2
    assert "did you mean hybrid?" in said(capsys)


@pytest.mark.parametrize(("option", "value"), [("--train.tensorboard true", True), ("--data.lowercase false", False)])
def test_a_flag_may_be_answered_with_a_word(option: str, value: bool, capsys: pytest.CaptureFixture[str]) -> None:
    room, name = option.split()[0][2:].split(".")
    assert main(["pretrain", "corpus", *option.split(), "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)[room][name] is value


def test_help_needs_none_of_the_heavy_libraries() -> None:
    code = """if True:
        import sys
        from bertkin.cli import main
        for verb in ([], ["pretrain"], ["tokenizer", "train"], ["fill"], ["demo"], ["resume"], ["prepare"]):
            assert main([*verb, "--help"]) == 0
        assert main(["--version"]) == 0
        heavy = {"torch", "numpy", "tokenizers", "safetensors", "transformers"} & set(sys.modules)
        assert not heavy, heavy
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--train.checkpoint-every" in done.stdout
    assert done.stdout.endswith(f"{bertkin.__version__}\n")


@pytest.mark.parametrize("room", [Data, Model, Objective, Train])
def test_every_field_is_an_option_with_its_docstring_as_help(room: type, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--help"]) == 0
    help_text = capsys.readouterr().out
    docs = field_docs(room)
    for name in room.__dataclass_fields__:  # type: ignore[attr-defined]
        assert docs[name]
        if name != "corpus":
            assert f"--{room.__name__.lower()}.{name.replace('_', '-')}" in help_text


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import bertkin, sys; assert not {'torch', 'numpy', 'cyclopts'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "fill" in dir(bertkin)
    with pytest.raises(AttributeError):
        bertkin.nothing_like_it  # noqa: B018


# The verbs.


def test_tokenizer_train_saves_and_reports(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = str(home / "corpus")
    out = str(home / "cased")
    assert main(["tokenizer", "train", corpus, "--out", out, "--kind", "bpe", "--vocab-size", "900"]) == 0
    text = capsys.readouterr().out
    for word in ("900 tokens", "coverage", "unknown", "fertility", "samples"):
        assert word in text
    assert main(["tokenizer", "train", corpus, "--out", out]) == 2
    assert "--overwrite" in said(capsys)


def test_tokenizer_show_cuts_a_text_and_measures_a_corpus(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("tokenizer", "run", "run/model", "tokenizer/tokenizer.json"):
        assert main(["tokenizer", "show", str(home / place), "--text", "The function returns."]) == 0
        assert "→ the function return" in capsys.readouterr().out
    assert main(["tokenizer", "show", str(home / "tokenizer"), str(home / "corpus")]) == 0
    assert "fertility" in capsys.readouterr().out


def test_prepare_makes_the_store_that_pretrain_finds(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(home / "corpus"), "--tokenizer", str(home / "tokenizer"), "-q"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    key = json.loads((home / "run" / "corpus.json").read_text())["store"]
    assert line.split() == ["store", str(Path(os.environ["BERTKIN_CACHE"]) / "stores" / key)]


def test_pretrain_leaves_a_whole_run_folder(home: Path) -> None:
    run = home / "run"
    assert {"recipe.yaml", "log.jsonl", "model", "checkpoints", "report.html"} <= {p.name for p in run.iterdir()}
    recipe = load_recipe(run / "recipe.yaml")
    assert (recipe.preset, recipe.train.steps, recipe.train.batch_tokens) == ("modern-tiny", 12, 512)
    assert (recipe.model.layers, recipe.data.vocab_size) == (2, 1500)
    kinds = {record["kind"] for record in read_log(run)}
    assert {"step", "evaluation", "samples"} <= kinds


def test_resuming_a_finished_run_changes_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (home / "run" / "model" / "model.safetensors").read_bytes()
    assert main(["resume", str(home / "run"), "-q"]) == 0
    assert "12 steps" in capsys.readouterr().out
    assert (home / "run" / "model" / "model.safetensors").read_bytes() == before


def test_fill_answers_texts_files_and_standard_input_alike(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, texts = str(home / "run"), ["the [MASK] returns", "a [MASK] of [MASK] objects"]
    (home / "texts").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    answers = []
    for arguments in ([*texts], ["--file", str(home / "texts")], ["-"], []):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(texts).encode())))
        assert main(["fill", run, *arguments, "--json", "--top-k", "3"]) == 0
        answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert all(answer == answers[0] for answer in answers)
    first, second = answers[0]
    assert (first["text"], len(first["blanks"]), len(second["blanks"])) == (texts[0], 1, 2)
    chances = [answer["probability"] for answer in first["blanks"][0]]
    assert len(chances) == 3
    assert chances == sorted(chances, reverse=True)


def test_fill_shows_people_a_bar_and_a_blank_by_number(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fill", str(home / "run"), "a [MASK] of [MASK]", "-k", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("a [MASK] of [MASK]\n  blank 1\n")
    assert "  blank 2\n" in out
    assert out.count("%") == 4


def test_text_may_come_from_standard_input(home: Path, tmp_path: Path) -> None:
    text = "\n\n".join(topics.values()).encode()
    arguments = ["pretrain", "-", "--out", str(tmp_path / "run"), "--train.steps", "2", "-q", *SMALL]
    process = bertkin_process(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(text)
    assert process.returncode == 0, err.decode()
    assert b"2 steps" in out


def test_five_lines_of_python_do_the_same_five_steps(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = {"batch_tokens": 512, "steps": 3, "eval_rows": 8, "threads": 1}
    tokenizer = bertkin.train_tokenizer(home / "corpus", out="tokenizer", vocab_size=1200)
    bertkin.pretrain(home / "corpus", out="run", preset="bert-tiny", train=small, **{"data.tokenizer": "tokenizer"})
    assert bertkin.resume("run").step == 3
    filled = bertkin.fill("run", "Paris is the [MASK] of France.", top_k=5)
    assert tokenizer.vocab_size == 1200
    assert len(filled.blanks[0]) == 5
    assert str(filled).startswith("Paris is the [MASK] of France.\n  ")
    assert bertkin.load("run").fill(["a [MASK]"])[0].text == "a [MASK]"
    with pytest.raises(bertkin.UserError, match="did you mean minutes"):
        bertkin.pretrain(home / "corpus", out="other", **{"train.minuts": 1})


# The recipe.


def test_an_option_counts_for_more_than_a_file_and_a_file_for_more_than_a_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("preset: bert-tiny\nmodel: {layers: 3}\ntrain: {minutes: 60, clip: 0.5, lr: 3e-4}\n")
    options = ["--train.steps", "1e3", "--train.clip=1", "--model.heads", "4", "--data.no_lowercase"]
    assert main(["pretrain", "corpus", "--config", str(file), "--print-config", *options]) == 0
    made = yaml.safe_load(capsys.readouterr().out)
    assert made["model"] | {"layers": 3, "heads": 4, "hidden": 128} == made["model"]
    assert made["train"] | {"steps": 1000, "minutes": None, "clip": 1.0, "lr": 3e-4} == made["train"]
    assert made["data"] | {"corpus": ["corpus"], "lowercase": False} == made["data"]


@pytest.mark.parametrize(
    ("options", "lowercase"), [(["bert-tiny"], True), (["t5-tiny"], False), (["t5-tiny", "--data.lowercase"], True)]
)
def test_a_preset_is_overruled_by_what_is_usual_elsewhere_too(
    options: list[str], lowercase: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "corpus", "--print-config", "--preset", *options]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["lowercase"] is lowercase


def test_a_printed_recipe_is_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "corpus", "--preset", "roberta-small", "--print-config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "recipe.yaml").write_text(printed)
    assert main(["pretrain", "--config", str(tmp_path / "recipe.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "named", "mend"),
    [
        ("pretrian x", "unknown verb pretrian", "did you mean pretrain?"),
        ("tokenizer trian x", "unknown verb trian", "did you mean train?"),
        ("--verbose", "unknown option --verbose", "--help"),
        ("pretrain x --train.stepps 3", "--train.stepps", "did you mean --train.steps?"),
        ("pretrain x --minutes 3", "--minutes", "did you mean --train.minutes?"),
        ("pretrain x --train.checkpoint_evry 3", "--train.checkpoint_evry", "--train.checkpoint-every?"),
        ("pretrain x --train.steps three", "--train.steps: expected a whole number, found 'three'", "--help"),
        ("pretrain x --train.steps 1.5", "--train.steps: expected a whole number", "--help"),
        ("pretrain x --train.lr fast", "--train.lr: expected a number, found 'fast'", "--help"),
        ("pretrain x --train.steps", "--train.steps needs a value", "--help"),
        ("pretrain x --objective.unit wrd", "--objective.unit: 'wrd' is not a choice", "did you mean word?"),
        ("pretrain x --preset bert-mni", "unknown preset 'bert-mni'", "bert-mini"),
        ("pretrain x --model.heads 3 --print-config", "3 heads", "choose"),
        ("pretrain x --train.steps 3 --train.tokens 4", "two budgets", "one of them"),
        ("pretrain x --train.minutes nan --print-config", "nan", "more than 0"),
        ("pretrain x --objective.rate 1.5 --print-config", "--objective.rate", "below 1"),
        ("pretrain", "no corpus", "standard input"),
        ("pretrain no/such/corpus", "no/such/corpus", "nearest folder"),
        ("pretrain x --config nope.yaml", "nope.yaml: no such recipe", "recipes/"),
        ("resume nowhere", "nowhere: not a run folder", "pretrain"),
        ("resume", "RUN is missing", "resume --help"),
        ("fill no/such/model [MASK]", "no/such/model", ""),
        ("tokenizer show nowhere", "nowhere: no such tokenizer", "give"),
        ("tokenizer train x --kind wrodpiece", "'wrodpiece' is not a choice", "did you mean wordpiece?"),
        ("demo --minutes 0", "--minutes", "choose"),
        (
            "demo --preset t5-mini",
            "--preset: t5-mini fills no blanks",
            "choose bert or roberta or modern or albert, such as",
        ),
        ("demo --preset bert-mni", "unknown preset", "bert-mini"),
        ("demo corpus", "'corpus'", "demo --help"),
    ],
)
def test_a_mistake_is_one_line_with_its_place_and_its_mend(
    arguments: str,
    named: str,
    mend: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    line = said(capsys)
    assert named in line
    assert mend in line
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_offered_to_be_resumed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(p.name for p in (home / "run").iterdir())
    assert main(["pretrain", str(home / "corpus"), "--out", str(home / "run")]) == 2
    assert f"bertkin resume {home / 'run'}" in said(capsys)
    assert sorted(p.name for p in (home / "run").iterdir()) == before


def test_a_text_that_cannot_be_filled_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(home / "run")
    assert main(["fill", run, "a [MASK]", "no blank here"]) == 2
    assert "text 2: no blank in 'no blank here'; write [MASK]" in said(capsys)
    assert main(["fill", run, "[MASK]" + " word" * 2000]) == 2
    assert "the model reads 512" in said(capsys)
    assert main(["fill", run, "a \udcff [MASK]"]) == 2
    assert "not UTF-8" in said(capsys)
    (home / "latin").write_bytes("caf\xe9 [MASK]".encode("latin-1"))
    assert main(["fill", run, "--file", str(home / "latin")]) == 2
    assert "latin@3" in said(capsys)


def test_a_place_that_cannot_be_written_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "file"
    file.write_text("x")
    tokenizer = str(home / "tokenizer")
    arguments = ["pretrain", str(home / "corpus"), "--data.tokenizer", tokenizer, "--train.steps", "2", "-q", *SMALL]
    assert main([*arguments, "--out", str(file / "run")]) == 2
    assert str(file) in said(capsys)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12), max_size=4))
@settings(max_examples=40)
def test_no_arguments_make_it_stumble(arguments: list[str]) -> None:
    assert main(["pretrain", "no/such/corpus", *arguments]) in (0, 2)
    assert main(["fill", "no/such/model", *arguments]) in (0, 2)


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
@settings(max_examples=60)
def test_no_recipe_file_makes_it_stumble(content: bytes) -> None:
    path = Path(os.environ["BERTKIN_CACHE"]) / "garbage.yaml"
    path.write_bytes(content)
    assert main(["pretrain", "corpus", "--config", str(path), "--print-config"]) in (0, 2)


# Signals and pipes.


def test_ctrl_c_saves_and_says_how_to_go_on(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["pretrain", str(home / "corpus"), "--out", str(run), "--data.tokenizer", str(home / "tokenizer")]
    process = bertkin_process(*arguments, "--train.steps", "100000", *SMALL, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while not read_log(run) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130, err
    assert err.rstrip().endswith(f"bertkin: stopped and saved; go on with: bertkin resume {run}")
    assert len(list((run / "checkpoints").glob("step-*"))) >= 1


def test_a_reader_that_goes_away_is_no_error(home: Path) -> None:
    arguments = ["fill", str(home / "run"), *["a [MASK]"] * 500]
    process = bertkin_process(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
