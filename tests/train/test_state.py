"""Checkpoints survive anything that happens to them or while they are written; so does the log."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkin.errors import UserError
from bertkin.train import state
from bertkin.train.state import (
    Log,
    Position,
    generator,
    load_checkpoint,
    read_checkpoint,
    read_log,
    save_checkpoint,
    sweep,
    write_text,
)

from .support import in_a_child_killed_at


def position(step: int, loss: float | None = None) -> Position:
    return Position(
        step=step, tokens=256 * step, seconds=step / 3, rows={"32": 8 * step, "64": 4}, loss=loss, accuracy=loss
    )


def tensors(step: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(step)
    return {"weight/a": torch.randn(7, 5, generator=draw), "first/a": torch.randn(7, 5, generator=draw).t()}


def steps(run: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in (run / "checkpoints").glob("step-*"))


def quiet(_text: str) -> None:
    pass


def same(found: tuple[Position, dict[str, torch.Tensor]] | None, step: int, loss: float | None = None) -> bool:
    assert found is not None
    wanted = tensors(step)
    equal = found[1].keys() == wanted.keys() and all(torch.equal(found[1][name], wanted[name]) for name in wanted)
    return found[0] == position(step, loss) and equal


# Writing and reading


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, position(3, 2.5), tensors(3), keep=2)
    assert folder.name == "step-00000003"
    assert same(read_checkpoint(folder), 3, 2.5)
    assert same(load_checkpoint(tmp_path, quiet), 3, 2.5)


def test_no_checkpoint_at_all_is_no_error(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, quiet) is None


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, loss in enumerate([5.0, 3.0, 4.0, None, 6.0, math.nan], start=1):
        save_checkpoint(tmp_path, position(step, loss), tensors(step), keep=2)
    assert steps(tmp_path) == [2, 5, 6]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_loss_that_is_not_a_number_is_never_the_best(tmp_path: Path) -> None:
    for step, loss in enumerate([math.nan, 3.0, 4.0, 5.0], start=1):
        save_checkpoint(tmp_path, position(step, loss), tensors(step), keep=1)
    assert steps(tmp_path) == [2, 4]


def test_at_least_one_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, position(step), tensors(step), keep=0)
    assert steps(tmp_path) == [3]


def test_a_step_written_again_replaces_the_old(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, position(1), tensors(2), keep=2)
    save_checkpoint(tmp_path, position(1, 4.0), tensors(1), keep=2)
    assert same(load_checkpoint(tmp_path, quiet), 1, 4.0)


def test_a_damaged_newer_checkpoint_does_not_push_out_the_one_written_after_it(tmp_path: Path) -> None:
    """A run that fell back from a damaged step 9 writes step 6: with one to keep, that one is 6."""
    save_checkpoint(tmp_path, position(9), tensors(9), keep=1)
    os.truncate(tmp_path / "checkpoints/step-00000009/state.safetensors", 20)
    save_checkpoint(tmp_path, position(6), tensors(6), keep=1)
    assert steps(tmp_path) == [6]


# Damage


def _flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


@settings(max_examples=80)
@given(data=st.data())
def test_a_flipped_bit_or_a_cut_anywhere_falls_back_and_says_so(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    run = tmp_path_factory.mktemp("run")
    for step in (1, 2):
        save_checkpoint(run, position(step), tensors(step), keep=2)
    victim = run / "checkpoints/step-00000002" / data.draw(st.sampled_from([state.TENSORS, state.STATE]))
    size = victim.stat().st_size
    if data.draw(st.booleans()):
        _flip(victim, data.draw(st.integers(0, 8 * size - 1)))
    else:
        os.truncate(victim, data.draw(st.integers(0, size - 1)))
    said: list[str] = []
    assert same(load_checkpoint(run, said.append), 1)
    assert len(said) == 1 and "step-00000002" in said[0] and "going back" in said[0] and "\n" not in said[0]


@pytest.mark.parametrize("name", [state.TENSORS, state.STATE])
def test_a_missing_file_falls_back(tmp_path: Path, name: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, position(step), tensors(step), keep=2)
    (tmp_path / "checkpoints/step-00000002" / name).unlink()
    assert same(load_checkpoint(tmp_path, quiet), 1)


@given(garbage=st.binary(max_size=200))
def test_garbage_for_a_state_is_damage_only(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    run = tmp_path_factory.mktemp("run")
    folder = save_checkpoint(run, position(1), tensors(1), keep=2)
    (folder / state.STATE).write_bytes(garbage)
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(folder)


@given(body=st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_json_of_any_shape_for_a_state_is_damage_only(tmp_path_factory: pytest.TempPathFactory, body: object) -> None:
    run = tmp_path_factory.mktemp("run")
    folder = save_checkpoint(run, position(1), tensors(1), keep=2)
    (folder / state.STATE).write_text(json.dumps(body))
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(folder)


def test_when_all_are_damaged_that_is_an_error_with_a_mend(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, position(step), tensors(step), keep=2)
        os.truncate(tmp_path / f"checkpoints/step-{step:08d}/state.json", 5)
    with pytest.raises(UserError, match=r"every checkpoint is damaged.*--overwrite"):
        load_checkpoint(tmp_path, quiet)


# Killed while writing


@pytest.mark.parametrize("replacing", [False, True], ids=["a new step", "the same step again"])
def test_a_kill_at_any_file_operation_leaves_whole_checkpoints_only(tmp_path: Path, replacing: bool) -> None:
    """Three are there with one to keep beside the best, so that writing the next also deletes."""
    new = 3 if replacing else 4
    boundary, survived = 0, 0
    while survived == 0:
        run = tmp_path / str(boundary)
        for step, loss in ((1, 1.0), (2, 3.0), (3, 2.0)):
            save_checkpoint(run, position(step, loss), tensors(step), keep=3)
        work = functools.partial(save_checkpoint, run, position(new), tensors(new), keep=1)
        killed = in_a_child_killed_at(boundary, work)
        said: list[str] = []
        found = load_checkpoint(run, said.append)
        assert found is not None and not said, f"a half checkpoint after a kill at operation {boundary}: {said}"
        step = found[0].step
        assert same(found, step, found[0].loss)
        assert step >= (2 if replacing else 3), "nothing is lost but what was being written"
        save_checkpoint(run, position(7), tensors(7), keep=1)
        assert not list((run / "checkpoints").glob(".*")), "what a kill leaves aside is swept up"
        assert same(load_checkpoint(run, quiet), 7)
        survived += not killed
        boundary += 1
    assert boundary > 10


def test_what_kills_leave_aside_is_swept_from_the_whole_run(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_checkpoint(tmp_path, position(1), tensors(1), keep=1)
    for name in (".recipe.yaml.123", "model/.model.safetensors.77", "checkpoints/.step-00000009.5/state.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    for name in ("recipe.yaml", "model/model.safetensors", ".gitignore", "model/.notes"):
        (tmp_path / name).write_text("whole")
    sweep(tmp_path)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    kept = {"recipe.yaml", "model/model.safetensors", ".gitignore", "model/.notes"}
    assert left == kept | {f"checkpoints/step-00000001/{name}" for name in (state.STATE, state.TENSORS)}


# Disks that refuse


@pytest.mark.parametrize("operation", ["os.mkdir", "os.fsync", "os.rename", "write"])
def test_a_full_disk_is_a_line_and_leaves_the_older_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    save_checkpoint(tmp_path, position(1), tensors(1), keep=2)

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(state if operation == "write" else os, "_write" if operation == "write" else operation[3:], full)
        with pytest.raises(UserError, match="disk is full") as caught:
            save_checkpoint(tmp_path, position(2), tensors(2), keep=2)
    assert "\n" not in str(caught.value) and caught.value.mend
    assert steps(tmp_path) == [1]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert same(load_checkpoint(tmp_path, quiet), 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_on_a_full_disk_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = Log(tmp_path)
    with pytest.raises(UserError, match="disk is full"):
        log.write({"kind": "step", "step": 1})
    log.close()


def test_a_read_only_folder_is_a_line(tmp_path: Path) -> None:
    """In a child, for root may write anywhere."""
    tmp_path.chmod(0o555)
    child = os.fork()
    if not child:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            save_checkpoint(tmp_path, position(1), tensors(1), keep=2)
        except UserError as error:
            os._exit(0 if "permission" in str(error) and "\n" not in str(error) else 2)
        except BaseException:
            os._exit(3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    tmp_path.chmod(0o755)


def test_a_small_file_is_the_old_or_the_new(tmp_path: Path) -> None:
    path, boundary = tmp_path / "recipe.yaml", 0
    while True:
        path.write_text("old")
        killed = in_a_child_killed_at(boundary, lambda: write_text(path, "new and longer"))
        assert path.read_text() == ("old" if killed else "new and longer")
        if not killed:
            break
        boundary += 1
    assert boundary >= 3


# The log


def test_a_log_cut_in_its_last_line_is_read_up_to_there_and_written_on(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for step in (1, 2, 3):
        log.write({"kind": "step", "step": step, "loss": math.inf, "word": "Ünï"})
    log.close()
    os.truncate(log.path, log.path.stat().st_size - 9)
    assert [r["step"] for r in read_log(tmp_path)] == [1, 2]
    log = Log(tmp_path, until=2)
    log.write({"kind": "resumed", "step": 2})
    log.close()
    records = read_log(tmp_path)
    assert [(r["kind"], r["step"]) for r in records] == [("step", 1), ("step", 2), ("resumed", 2)]
    assert records[0]["loss"] is None and records[0]["word"] == "Ünï"
    assert all(json.loads(line) for line in log.path.read_text().splitlines())


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for step in range(1, 8):
        log.write({"kind": "step", "step": step})
    log.close()
    Log(tmp_path, until=4).close()
    assert [r["step"] for r in read_log(tmp_path)] == [1, 2, 3, 4]
    Log(tmp_path, until=0).close()
    assert read_log(tmp_path) == []


@given(content=st.binary(max_size=300))
def test_a_log_of_garbage_is_no_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    run = tmp_path_factory.mktemp("run")
    (run / "log.jsonl").write_bytes(content)
    assert all(isinstance(record, dict) for record in read_log(run))
    Log(run, until=3).close()


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []


# Randomness


@given(seed=st.integers(-(2**63), 2**64), step=st.integers(0, 2**40), rank=st.integers(0, 4000))
def test_any_seed_step_and_rank_can_be_drawn_from(seed: int, step: int, rank: int) -> None:
    generator(seed, step, rank)
    first = torch.rand(3)
    generator(seed, step, rank)
    assert torch.equal(first, torch.rand(3))
    generator(seed, step, rank + 1)
    assert not torch.equal(first, torch.rand(3))


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9, math.nan]), st.floats(0, 3)), min_size=1, max_size=12))
def test_the_best_evaluation_has_the_highest_score_and_of_those_the_lowest_loss(
    found: list[tuple[float, float]],
) -> None:
    position = Position()
    for position.step, (score, loss) in enumerate(found, start=1):
        position.judge(score, loss)
    real = [(score, -loss, -step) for step, (score, loss) in enumerate(found, start=1) if not math.isnan(score)]
    assert position.best_step == (-max(real)[2] if real else None)
    assert position.stale == len(found) - (position.best_step or 0)
