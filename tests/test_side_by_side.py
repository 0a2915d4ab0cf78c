"""Stages side by side: order, company, failures, and a small pipeline run by DVC itself."""

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biox.side_by_side import DVC, Pipeline, in_order, repro

DOT = """strict digraph {
"make@a";
"make@b";
"use";
"clock";
"make@a" -> "use";
"make@b" -> "use";
"make@a" -> "clock";
}
"""
DVC_YAML = """
stages:
  make:
    foreach: [a, b]
    do:
      cmd: make ${item}
      meta: {minutes: 2}
  use:
    cmd: use
    meta: {minutes: 3}
  clock:
    cmd: clock
    meta: {alone: true}
"""


def test_a_pipeline_is_read_from_what_dvc_says():
    pipeline = Pipeline.of(DOT, DVC_YAML)
    made = frozenset({"make@a", "make@b"})
    assert set(pipeline.needs) == made | {"use", "clock"}
    assert pipeline.needs["use"] == made and pipeline.needs["clock"] == {"make@a"}
    assert pipeline.needs["make@a"] == frozenset() and pipeline.alone == {"clock"}
    assert pipeline.minutes_to_end()["make@a"] == 5 and pipeline.minutes["clock"] < 1


def test_what_depends_on_a_changed_stage_may_have_to_run():
    pipeline = Pipeline.of(DOT, DVC_YAML)
    assert pipeline.after(["make@b"]) == {"make@b", "use"}
    assert pipeline.after(["clock"]) == {"clock"}
    assert pipeline.after([]) == set()


def test_targets_come_with_what_they_need():
    pipeline = Pipeline.of(DOT, DVC_YAML)
    assert pipeline.up_to(["clock"]) == {"clock", "make@a"}
    assert pipeline.up_to(["make"]) == {"make@a", "make@b"}
    with pytest.raises(ValueError, match="repro: expected a stage of dvc.yaml, found 'mak'"):
        pipeline.up_to(["mak"])


class Pretended:
    """Stages that take no time: the one that started first ends first."""

    def __init__(self, fails: set[str] = frozenset()):
        self.fails, self.running, self.seen, self.ended = fails, [], [], []

    def start(self, stage):
        self.running.append(stage)
        self.seen.append((stage, tuple(self.running), tuple(self.ended)))

    def wait(self):
        stage = self.running.pop(0)
        self.ended.append(stage)
        return stage, stage not in self.fails


@st.composite
def pipelines(draw):
    n = draw(st.integers(1, 9))
    names = [f"s{i}" for i in range(n)]
    before = {
        name: frozenset(draw(st.sets(st.sampled_from(names[:i])))) if i else frozenset()
        for i, name in enumerate(names)
    }
    minutes = {name: draw(st.floats(0, 5)) for name in names}
    return Pipeline(before, minutes, frozenset(draw(st.sets(st.sampled_from(names)))))


@given(pipelines(), st.integers(1, 4), st.data())
def test_every_stage_runs_once_after_what_it_needs(pipeline, jobs, data):
    stages = pipeline.after(data.draw(st.lists(st.sampled_from(sorted(pipeline.needs)))))
    pretended = Pretended()
    assert in_order(pipeline, stages, jobs, pretended.start, pretended.wait) is None
    assert sorted(pretended.ended) == sorted(stages)
    for stage, running, ended in pretended.seen:
        assert pipeline.needs[stage] & stages <= set(ended)
        assert len(running) <= jobs
        assert len(running) == 1 or not pipeline.alone & set(running)


@given(pipelines(), st.integers(1, 4), st.data())
def test_nothing_starts_after_a_failure(pipeline, jobs, data):
    bad = data.draw(st.sampled_from(sorted(pipeline.needs)))
    pretended = Pretended({bad})
    everything = set(pipeline.needs)
    assert in_order(pipeline, everything, jobs, pretended.start, pretended.wait) == bad
    assert all(bad not in ended for _, _, ended in pretended.seen)
    assert not pretended.running  # what ran was waited for


def test_cores_have_work_and_long_ways_start_first():
    names = ["short", "long", "end"]
    pipeline = Pipeline(
        {"short": frozenset(), "long": frozenset(), "end": frozenset({"long"})},
        {"short": 2.5, "long": 1.0, "end": 2.0},
        frozenset(),
    )
    pretended = Pretended()
    in_order(pipeline, set(names), 1, pretended.start, pretended.wait)
    assert pretended.ended == ["long", "short", "end"]


@pytest.fixture
def project(tmp_path):
    """A pipeline of DVC: two stages that wait for each other's mark, and one behind both."""
    meet = "import pathlib, time; pathlib.Path('{me}').touch(); end = time.time() + 60\n"
    meet += "while not pathlib.Path('{other}').exists(): assert time.time() < end; time.sleep(0.1)"
    for me, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{me}.py").write_text(meet.format(me=f"{me}.mark", other=f"{other}.mark"))
    (tmp_path / "end.py").write_text("open('end.txt', 'w').write('done')")
    stages = "".join(
        f"  {me}:\n    cmd: {sys.executable} {me}.py\n    deps: [{me}.py]\n    outs: [{me}.mark]\n"
        for me in "ab"
    )
    (tmp_path / "dvc.yaml").write_text(
        f"stages:\n{stages}"
        f"  end:\n    cmd: {sys.executable} end.py\n    deps: [end.py, a.mark, b.mark]\n"
        f"    outs: [end.txt]\n"
    )
    (tmp_path / ".gitignore").write_text("*.mark\nend.txt\n")
    for command in (["git", "init", "-q"], [*DVC, "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    return tmp_path


def test_dvc_runs_stages_side_by_side_and_finds_nothing_to_do_then(project, capfd):
    assert repro(project, jobs=2) is None  # each of a and b ends only once the other runs
    assert (project / "end.txt").read_text() == "done"
    out = subprocess.run([*DVC, "repro"], cwd=project, capture_output=True, text=True, check=True)
    assert "up to date" in out.stdout + out.stderr
    capfd.readouterr()
    assert repro(project, jobs=2) is None
    assert capfd.readouterr().out == ""
    (project / "end.py").write_text("raise SystemExit('no such sensor')")
    before = time.perf_counter()
    assert repro(project, jobs=2) == "end"
    told = capfd.readouterr()
    assert "no such sensor" in told.err and "end: expected exit status 0" in told.err
    assert "[  1/1] end" in told.out and time.perf_counter() - before < 60
