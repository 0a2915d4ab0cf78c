"""A pass of the frozen models that stops half way: it goes on, and to the same bytes."""

import signal
import subprocess
import sys
import textwrap

import pytest
from test_training import toy_windows
from toy_cache import ROOT, bytes_in, same, store, toy_models

from biox import one_pass
from biox.activations import Activations, compute_activations


@pytest.fixture(scope="module")
def models():
    return toy_models()


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """Content of the files of an uninterrupted pass."""
    folder = tmp_path_factory.mktemp("whole")
    store(folder / "pair.safetensors", models)
    return bytes_in(folder)


class Stop(Exception):
    pass


N_SYNCS = 3 * 5 + 1  # small arrays, last layer and progress of five blocks; the last layer's key
MOMENTS = [
    *[
        ("_reach_disk", n) for n in range(1, N_SYNCS + 1)
    ],  # written, but nobody knows how much of it
    ("_Pass.finish", 1),
    ("Activations.save_small", 1),
    ("_Pass.discard", 2),  # all is in place; the first call is before the first block
]


@pytest.mark.parametrize(("what", "nth"), MOMENTS)
def test_a_pass_interrupted_at_any_moment_goes_on(models, whole, tmp_path, monkeypatch, what, nth):
    path, calls, runs = tmp_path / "pair.safetensors", [], []
    owner, _, name = f"one_pass.{what}".rpartition(".")
    owner = {"one_pass": one_pass, "one_pass._Pass": one_pass._Pass}.get(owner, Activations)
    real = getattr(owner, name)

    def interrupted(*args):
        calls.append(name)
        if len(calls) == nth:
            raise Stop
        return real(*args)

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(Stop):
        store(path, models)
    monkeypatch.undo()
    in_place = what == "_Pass.discard"
    if not in_place:
        with pytest.raises((FileNotFoundError, ValueError)):
            Activations.load(path)
    kind, forward = type(models[1]), type(models[1]).hidden_states
    monkeypatch.setattr(kind, "hidden_states", lambda m, x: (runs.append(len(x)), forward(m, x))[1])
    store(path, models)
    assert bytes_in(tmp_path) == whole
    finished = min((nth - 1) // 3, 5) if what == "_reach_disk" else 5
    assert sum(n > 1 for n in runs) == 5 - finished  # shapes are measured with one window


CHILD = """
    import sys
    sys.path[:0] = [{root!r}, {tests!r}]
    from toy_cache import store, toy_models
    from biox import one_pass
    import time
    write = one_pass._Pass.write
    def slow(self, block, stop):
        write(self, block, stop)
        print(stop, flush=True)
        time.sleep({pause})
    one_pass._Pass.write = slow
    store({path!r}, toy_models())
"""


def child(path, pause):
    code = CHILD.format(root=str(ROOT), tests=str(ROOT / "tests"), path=str(path), pause=pause)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_pass_killed_by_the_system_goes_on(models, whole, tmp_path):
    path = tmp_path / "killed" / "pair.safetensors"
    process = child(path, pause=60)
    assert process.stdout.readline() == "5\n", process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close(), process.stderr.close()
    assert not path.exists() and len(bytes_in(path.parent)) == 3
    said = []
    store(path, models, say=said.append)
    assert "5 windows were done before an interruption" in "".join(said)
    assert bytes_in(path.parent) == whole


def test_progress_without_its_data_is_not_believed(models, tmp_path, monkeypatch):
    path = tmp_path / "pair.safetensors"
    monkeypatch.setattr(one_pass._Pass, "finish", lambda *_: (_ for _ in ()).throw(Stop()))
    for damage in ("last", "small", "done"):
        with pytest.raises(Stop):
            store(path, models)
        (part,) = tmp_path.glob(f".pair.*.{damage}.part")
        part.write_bytes(part.read_bytes()[:-3])
    monkeypatch.undo()
    said = []
    same(store(path, models, say=said.append), compute_activations(toy_windows(), *models, batch=5))
    assert "interruption" not in "".join(said)


def test_an_unfinished_pass_over_something_else_is_thrown_away(models, tmp_path, monkeypatch):
    path = tmp_path / "pair.safetensors"
    monkeypatch.setattr(one_pass._Pass, "finish", lambda *_: (_ for _ in ()).throw(Stop()))
    with pytest.raises(Stop):
        store(path, toy_models(1))
    (tmp_path / "..pair.0123.done.part.99.part").touch()  # killed while it told its progress
    (tmp_path / ".test.0123.small.part").touch()  # of another split
    monkeypatch.undo()
    same(store(path, models), compute_activations(toy_windows(), *models, batch=5))
    left = [".test.0123.small.part", "pair.last.npy", "pair.safetensors"]
    assert sorted(bytes_in(tmp_path)) == left
