"""Pickles: numbers come out, and nothing in them is ever run."""

import os
import pathlib
import pickle

import numpy as np
import pytest
from raw_files import write_wesad

from biox.data import wesad
from biox.data.pickles import read_pickle

PYTHON_2 = (
    b"\x80\x02}q\x00U\x05labelq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\n"
    b"q\x03K\x00\x85U\x01bq\x04\x87Rq\x05(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02f8K\x00K\x01"
    b"\x87Rq\x07(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x10"
    + np.array([1.5, -2.25]).tobytes()
    + b"tbs."
)


def test_a_pickle_as_python_2_wrote_it_is_read(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(PYTHON_2)
    np.testing.assert_array_equal(read_pickle(path)["label"], [1.5, -2.25])
    np.testing.assert_array_equal(pickle.loads(PYTHON_2, encoding="latin1")["label"], [1.5, -2.25])


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_safe_pickles_equal_pickle(protocol, tmp_path):
    content = {
        "a": np.arange(6, dtype=np.int32).reshape(2, 3),
        "b": [1, 2.5, "text", None, (True, b"x")],
        "c": {"d": np.float32(3.5), "e": np.zeros((0, 1))},
    }
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    got = read_pickle(path)
    np.testing.assert_array_equal(got["a"], content["a"])
    assert got["b"][:4] == content["b"][:4] and got["c"]["d"] == 3.5
    assert got["c"]["e"].shape == (0, 1)


class Attack:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("call", ["open", "eval", "system", "touch", "numpy"])
def test_a_hostile_pickle_is_refused_and_runs_nothing(call, tmp_path):
    mark = tmp_path / "mark"
    attacks = {
        "open": Attack(open, str(mark), "w"),
        "eval": Attack(eval, f"open({str(mark)!r}, 'w')"),
        "system": Attack(os.system, f"touch {mark}"),
        "touch": Attack(pathlib.Path.touch, mark),
        "numpy": Attack(np.save, str(mark), 1),
    }
    path = write_wesad(tmp_path, seconds=3, label=attacks[call])
    with pytest.raises(ValueError, match="nothing of it was run") as error:
        wesad.read(tmp_path, "S2")
    assert str(path) in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["S2"]
    pickle.loads(path.read_bytes())  # the attack is real: an ordinary reader falls for it
    assert len(list(tmp_path.iterdir())) == 2
