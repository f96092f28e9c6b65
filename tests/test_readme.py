"""What the README says can be typed can be typed; what it names is there; and no page leads nowhere."""

from __future__ import annotations

import ast
import functools
import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "README.zh-CN.md"]
PAGES = sorted(
    path for pattern in ("*.md", "docs/*.md", "recipes/*.md", "experiments/*.md") for path in ROOT.glob(pattern)
)
SHORTER = {
    "--train.minutes 10": "--train.steps 2",
    '"minutes": 10': '"steps": 2',
}
"""All that is changed in the README's commands before they are run."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MACHINE_PATH = re.compile(r"(?<![\w.~$}\])/-])/(?:work|root|opt|home|Users|mnt|srv|nix|usr/local)/")
"""The beginning of a path that only one machine has."""


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in this language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [body for found, body in FENCE.findall(text) if found == language]


def uncommented(code: str) -> str:
    """Code without its comments, which each language writes in its own words."""
    return "\n".join(re.sub(r"\s*(^|\s)#.*", "", line) for line in code.splitlines())


def a_place_to_type(folder: Path) -> None:
    """A folder with what the README asks for: text in corpus/, and the recipes of the project."""
    draw = random.Random(0)
    places, things = ["Paris", "Lyon", "Rome", "the village"], ["capital", "heart", "pride", "largest port"]
    did = ["sat", "slept", "hid", "stood"]
    for file in range(4):
        sentences = [
            f"{draw.choice(places)} is the {draw.choice(things)} of France. The cat {draw.choice(did)} "
            f"on the mat in the year {draw.randint(1000, 2000)}."
            for _ in range(120)
        ]
        parts = ["\n".join(sentences[i : i + 4]) for i in range(0, len(sentences), 4)]
        (folder / "corpus").mkdir(exist_ok=True)
        (folder / "corpus" / f"{file}.txt").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (folder / "recipes").symlink_to(ROOT / "recipes", target_is_directory=True)


@functools.cache
def typed(command: tuple[str, ...], scripts: tuple[str, ...], folder: Path) -> list[str]:
    """What each script prints, run one after the other in a new folder; the same scripts are run once."""
    folder.mkdir()
    a_place_to_type(folder)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"}
    printed = []
    for script in scripts:
        for long, short in SHORTER.items():
            script = script.replace(long, short)
        done = subprocess.run(
            [*command, script], cwd=folder, env=environment, capture_output=True, text=True, timeout=1000
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    return printed


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.timeout(1800)  # seconds when nothing else runs; a crowded machine may take long
@pytest.mark.parametrize("page", READMES)
def test_the_commands_of_the_readme_can_be_typed_as_they_stand(page: str, desk: Path) -> None:
    scripts = tuple(uncommented(block) for block in blocks(page, "bash"))
    printed = typed(("sh", "-euc"), scripts, desk / "commands")
    assert len(printed) >= 3 and "%" in printed[0]
    assert (desk / "commands" / "runs" / "mine" / "report.html").is_file()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", READMES)
def test_the_python_of_the_readme_can_be_typed_as_it_stands(page: str, desk: Path) -> None:
    code = "\n".join(uncommented(block) for block in blocks(page, "python"))
    (printed,) = typed((sys.executable, "-c"), (code,), desk / "python")
    assert "The film was directed [MASK] John Ford." in printed and "%" in printed


@pytest.mark.parametrize("language", ["sh", "bash", "python"])
def test_both_readmes_have_the_same_commands(language: str) -> None:
    english, chinese = ([uncommented(block) for block in blocks(page, language)] for page in READMES)
    assert english == chinese and english


def test_what_is_made_shorter_is_in_the_readme() -> None:
    code = "".join(blocks("README.md", "bash") + blocks("README.md", "python"))
    assert all(long in code for long in SHORTER)


def commands() -> Iterator[tuple[str, str]]:
    """Every `bertkin …` line of the pages' blocks, with its page."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for language, body in FENCE.findall(text):
            for line in body.splitlines() if language in ("bash", "sh", "") else []:
                for part in re.split(r"\s\|\s|&&", uncommented(line)):
                    called = re.match(r"\s*(?:\S*/)?(?:bertkin|torchrun .* -m bertkin) (?!--version)(.+)", part)
                    if called:
                        yield str(path.relative_to(ROOT)), called.group(1).strip()


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_in_the_documentation_is_understood(page: str, line: str) -> None:
    from bertkin.cli import _arguments, app

    words = shlex.split(line)
    if words[-1] != "--help":
        app.parse_args(_arguments(words), exit_on_error=False, print_error=False)


FLOORS = {"errors": -1, "config": 0, "text": 1, "objectives": 2, "models": 2, "train": 3, "tasks": 4, "inspect": 4}
"""docs/design.md: a room imports from lower floors only."""


def imports(path: Path) -> Iterator[str]:
    """The rooms that a module imports from, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if names == ["bertkin"] and isinstance(node, ast.ImportFrom):
            names = [f"bertkin.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("bertkin."))


@pytest.mark.parametrize("room", FLOORS)
def test_rooms_import_from_lower_floors_only(room: str) -> None:
    house = ROOT / "src" / "bertkin"
    for path in [*house.glob(f"{room}.py"), *house.glob(f"{room}/**/*.py")]:
        for other in imports(path):
            assert other == room or FLOORS.get(other, 99) < FLOORS[room] or other.startswith("_"), f"{path}: {other}"


def map_of(page: str) -> set[str]:
    """The paths that a README's map names, each under the folder it is indented in."""
    text = (ROOT / page).read_text(encoding="utf-8").split("<!-- map -->")[1].split("<!-- /map -->")[0]
    found, folders = set(), [""]
    for line in FENCE.findall(text)[0][1].splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        assert len(line.split()) > 1, f"{name} has no purpose"
        del folders[depth + 1 :]
        found.add(folders[depth] + name)
        folders.append(folders[depth] + name)
    return found


@pytest.mark.parametrize("page", READMES)
def test_every_module_is_in_the_map_and_everything_in_the_map_is_there(page: str) -> None:
    named = map_of(page)
    modules = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("src/bertkin/**/*.py", "src/bertkin/**/*.[ch]pp", "benchmarks/*.py", "experiments/*.py")
        for path in ROOT.glob(pattern)
        if path.stat().st_size
    }
    assert sorted(modules - named) == [], "not in the map"
    assert sorted(name for name in named if not (ROOT / name).exists()) == [], "in the map, but not there"


def measured() -> list[str]:
    """The figures that the benchmarks have written, as the README writes them."""
    speed = json.loads((ROOT / "benchmarks" / "pretraining.json").read_text(encoding="utf-8"))
    reading = json.loads((ROOT / "benchmarks" / "preparing.json").read_text(encoding="utf-8"))
    figures = []
    for shape in speed["throughput"]["shapes"].values():
        rates = shape["tokens_per_second"]
        figures += [f"{rates[side]:,}" for side in ("bertkin", "trainer", "tuned")]
        figures += [f"{rates['bertkin'] / rates[side]:.1f}×" for side in ("trainer", "tuned")]
    loss = speed["time_to_loss"]
    figures += [f"{loss['peer']['loss']:.3f}", f"{loss['ours'][-1]['minutes']:.2f}", f"{loss['ratio']:.0f}×"]
    figures += [f"{loss['equal'][side]['loss']:.3f}" for side in ("ours", "peer")]
    hour = json.loads((ROOT / "experiments" / "english_mini.json").read_text(encoding="utf-8"))["parts"]
    figures += [f"{hour[side]['loss']:.3f}" for side in ("ours", "peer")]
    figures += [f"{reading['medians'][side]['seconds']:.0f}" for side in ("bertkin", "tokenizers")]
    return [*figures, f"{reading['ratio']:.1f}×", f"{reading['medians']['bertkin']['peak_bytes'] / 1e6:.0f} MB"]


@pytest.mark.parametrize("page", READMES)
def test_the_figures_of_the_readme_are_those_the_benchmarks_wrote(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").split("<!-- figures -->")[1].split("<!-- /figures -->")[0]
    shown = set(re.findall(r"[\d.,]*\d(?:×| MB)?", text))
    assert [figure for figure in measured() if figure not in shown] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = [link for link in LINK.findall(text) if not re.match(r"https?:|mailto:", link)]
    for target in links:
        file, _, heading = target.partition("#")
        place = (page.parent / file) if file else page
        assert place.exists(), f"{target} is not there"
        if heading:
            assert heading in anchors(place), f"no heading {heading} in {file or page.name}"


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are linked to."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_no_file_of_the_project_names_a_path_of_one_machine() -> None:
    found = []
    for path in project_files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


def project_files() -> Iterator[Path]:
    """The text files that belong to the project: what git keeps, or, without git, what is not hidden or made."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        made = {"runs", "build", "dist", "__pycache__"}
        paths = [
            path
            for path in ROOT.rglob("*")
            if not any(part.startswith(".") or part in made for part in path.relative_to(ROOT).parts)
        ]
    yield from (path for path in paths if path.is_file() and path.suffix not in (".png", ".gz"))
