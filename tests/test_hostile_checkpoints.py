"""Files that are no checkpoints, want something run, ask too much, or are damaged: one sentence."""

import argparse
import functools
import os
import pathlib
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from authors_files import authors_file, forget, labram, output, same, tiny
from fill import windows
from safetensors.torch import save_file
from torch import nn

from biox.__main__ import main
from biox.backbones import build
from biox.backbones.weight_files import read_weights


@pytest.fixture(autouse=True)
def nothing_is_made_or_kept(tmp_path, monkeypatch):
    """Every file runs in a folder of its own, and no attack may leave its mark there."""
    monkeypatch.chdir(tmp_path)
    yield
    forget()
    assert not (tmp_path / "mark").exists()


NO_CHECKPOINTS = {
    "empty": (b"", "an empty file"),
    "text": (b"some notes\n", "text"),
    "umlauts": ("\u00fc".encode() * 100, "text"),
    "page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a git-lfs pointer"),
    "json": (b'{"error": "not found", "a": [1]}', "a JSON document"),
    "binary": (b"\xff\xfe\x00\x01" * 9, "begins with ff fe 00 01"),
    "gzip": (b"\x1f\x8b" + bytes(30), "a gzip archive"),
    "pickle": (pickle.dumps({"a": 1}), "a pickle of something else"),
    "list": (pickle.dumps([1, 2]), "a pickle of something else"),
    "zip cut": (b"PK\x03\x04" + bytes(100), "truncated or damaged zip archive"),
}


@pytest.mark.parametrize("what", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_said_in_one_sentence(what):
    content, sentence = NO_CHECKPOINTS[what]
    pathlib.Path("x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^x.pth: expected a checkpoint .*{sentence}") as caught:
        build("labram", "tiny", checkpoint="x.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_zips_of_other_things_are_refused():
    with zipfile.ZipFile("x.pth", "w") as archive:
        archive.writestr("word/document.xml", "x")
    with pytest.raises(ValueError, match="x.pth: .*zip archive of other things"):
        read_weights("x.pth")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "y.pth")
    with pytest.raises(ValueError, match="y.pth: .*TorchScript program"):
        read_weights("y.pth")
    with pytest.raises(FileNotFoundError, match="absent.pth: expected a checkpoint, found nothing"):
        build("labram", "tiny", checkpoint="absent.pth")
    torch.save([torch.zeros(3)], "z.pth")
    with pytest.raises(ValueError, match="z.pth: blocks.0.*found no such key"):
        build("labram", "tiny", checkpoint="z.pth")


# --- files that want something run


class Attack:
    """Pickled, it is a call of any function with any arguments."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def raw_global(module, name, argument=b"Vx\n"):
    """Pickle of ``module.name(argument)`` for names that this system may not have."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + argument + b"tR."


def torch_zip(path, program, storages=(), compression=zipfile.ZIP_STORED):
    """Write an archive as torch would, around a pickle and raw storages."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        for key, content in enumerate(storages):
            archive.writestr(f"archive/data/{key}", content)


CALLS = {
    "system": Attack(os.system, "touch mark"),
    "exec": Attack(exec, "open('mark', 'w')"),
    "eval": Attack(eval, "open('mark', 'w')"),
    "open": Attack(open, "mark", "w"),
    "getattr": Attack(getattr, OrderedDict, "clear"),
    "import": Attack(__import__, "antigravity"),
    "mkdir": Attack(os.mkdir, "mark"),
    "popen": Attack(subprocess.Popen, ["touch", "mark"]),
    "loads": Attack(pickle.loads, pickle.dumps(Attack(os.system, "touch mark"))),
    "touch": Attack(pathlib.Path.touch, pathlib.Path("mark")),
    "hub": Attack(torch.hub.load_state_dict_from_url, "https://x.invalid/x"),
    "torch load": Attack(torch.load, "weights.pth"),
    "sparse": Attack(torch._utils._rebuild_sparse_tensor, 1, 2),
    "partial": Attack(functools.partial, os.system, "touch mark"),
    "state": Attack(OrderedDict, state={"x": Attack(os.system, "touch mark")}),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_calls_of_python_and_torch_are_refused(call, zipped):
    content = {**labram(tiny("labram").state_dict()), "args": CALLS[call]}
    torch.save(content, "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"^x.pth: .*found a use of \S+; nothing of it was run$"):
        build("labram", "tiny", checkpoint="x.pth")
    assert main(["checkpoints", "inspect", "x.pth"]) == 1
    assert os.listdir() == ["x.pth"]


@pytest.mark.parametrize(
    "name",
    ["posix.system", "nt.system", "builtins.eval", "__builtin__.eval", "commands.getoutput"]
    + ["importlib.import_module", "torch._C._jit", "torch.jit.load", "codecs.open", "sys.exit"]
    + ["pathlib.Path.touch", "copyreg._reconstructor", "_posixsubprocess.fork_exec"],
)
def test_names_of_any_system_are_refused(name):
    module, _, attribute = name.partition(".") if "Path" in name else name.rpartition(".")
    torch_zip("x.pth", raw_global(module, attribute))
    with pytest.raises(ValueError, match=f"^x.pth: .*found a use of {name}; nothing"):
        read_weights("x.pth")
    other = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode()
    other += b"\x8c" + bytes([len(attribute)]) + attribute.encode() + b"\x93)R."
    torch_zip("y.pth", other)
    with pytest.raises(ValueError, match=f"^y.pth: .*found a use of {name}; nothing"):
        read_weights("y.pth")


def test_calls_inside_a_persistent_id_are_refused():
    program = b"\x80\x02(U\x07storagecposix\nsystem\n(U\ntouch marktRtQ."
    torch_zip("x.pth", program)
    with pytest.raises(ValueError, match="found a use of posix.system"):
        read_weights("x.pth")


def test_objects_of_packages_are_looked_at_and_never_built(capsys):
    sys.modules["vanished_package"] = types.ModuleType("vanished_package")
    module = sys.modules["vanished_package.tools"] = types.ModuleType("vanished_package.tools")

    def install(name):
        pathlib.Path("mark").touch()

    install.__module__, install.__qualname__ = module.__name__, "install"
    module.install = install
    model = tiny("labram")
    content = labram(model.state_dict())
    content["extra"] = Attack(install, "mark", state={"more": Attack(install, "x")})
    torch.save(content, "x.pth")  # the module stays importable: it is not even looked for
    same(output(build("labram", "tiny", checkpoint="x.pth")), output(model))
    assert main(["checkpoints", "inspect", "x.pth"]) == 0
    assert "vanished_package.tools.install (not built)" in capsys.readouterr().out

    content["model"]["student.cls_token"] = Attack(install, "mark")
    torch.save(content, "x.pth")
    with pytest.raises(ValueError, match="x.pth: cls_token: .*an object of vanished_package.tools"):
        build("labram", "tiny", checkpoint="x.pth")


def tensor_program(shape, stride, offset=0, numel=4, key="0", kind="FloatStorage"):
    """Pickle of one tensor, with any numbers in it."""

    def number(n):
        return f"I{n}\n".encode()

    def row(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = f"(Vstorage\nctorch\n{kind}\nV{key}\nVcpu\nI{numel}\ntQ".encode()
    view = storage + number(offset) + row(shape) + row(stride) + b"\x89)"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"tR."


@pytest.mark.parametrize(
    "program, sentence",
    [
        (tensor_program([5], [1]), "does not lie inside its storage of 4 numbers"),
        (tensor_program([2, 2], [3, 1]), "does not lie inside"),
        (tensor_program([2], [1], offset=3), "does not lie inside"),
        (tensor_program([2], [1], offset=-1), "without a storage, shape and strides"),
        (tensor_program([2], [-1], offset=2), "without a storage, shape and strides"),
        (tensor_program([10**6, 10**6], [0, 0]), "does not lie inside"),
        (tensor_program([2**80], [1]), "without a storage, shape and strides"),
        (tensor_program([2], [1], numel=10**12), "claims 1000000000000 numbers .* has 16 bytes"),
        (tensor_program([2], [1], numel=-1), "no storage of torch"),
        (tensor_program([2], [1], key="1"), "no member archive/data/1"),
        (tensor_program([2], [1], key="../x"), "no member"),
        (tensor_program([2], [1], kind="QInt8Storage"), "a use of torch.QInt8Storage"),
        (tensor_program([1] * 40, [1] * 40), "without a storage, shape and strides"),
        (raw_global("torch._utils", "_rebuild_tensor_v2"), "damaged one"),
        (b"\x80\x02K\x05r\xff\xff\xff\x7f.", None),  # a memo of 2**31 places
        (b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".", None),  # lists in lists
        (b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.", "a container as key"),
        (b"\x80\x02})" + b"2\x86" * 60 + b"Ns.", "a container as key"),  # 2**60 members
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00x.", "damaged one"),  # bytes of length 2**56
        (b"\x80\x02I" + b"9" * 9999 + b"\n.", "damaged one"),
        (b"\x80\x02\x82\x01.", "the pickle instruction EXT1"),
        (b"\x80\x05\x97.", "the pickle instruction NEXT_BUFFER"),
        (b"\x80\x02Pname\n.", "the pickle instruction PERSID"),
        (b"\x80\x02]]b.", "a state for a list"),
        (b"\x80\x02U\x01x)R.", "a call of a str"),
        (b"\x80\x02NNs.", "damaged one"),
        (b".", "damaged one"),
    ],
)
def test_programs_that_ask_too_much_are_refused_at_once(program, sentence):
    torch_zip("x.pth", program, [bytes(16)])
    if sentence is None:  # harmless for this reader
        assert read_weights("x.pth").content
        return
    with pytest.raises(ValueError, match=f"^x.pth: .*{sentence}"):
        read_weights("x.pth")


def test_compressed_members_are_refused():
    torch_zip("x.pth", tensor_program([4], [1]), [bytes(16)], zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="x.pth: .*compressed member archive/"):
        read_weights("x.pth")


def test_big_endian_archives_are_read():
    values = np.array([1.5, -2, 3, 4], dtype=">f4")
    with zipfile.ZipFile("x.pth", "w") as archive:
        archive.writestr("a/data.pkl", tensor_program([2, 2], [2, 1]))
        archive.writestr("a/byteorder", "big")
        archive.writestr("a/data/0", values.tobytes())
    file = read_weights("x.pth")
    same(file.read(file.content), torch.tensor([[1.5, -2], [3, 4]]))


# --- files that are cut short or damaged


def every_way_to_write(path):
    """A small state dict in all three formats."""
    state = {"a.weight": windows("a", (3, 4)), "b": windows("b", (5,)), "n": torch.tensor(3)}
    for end, options in (("zip", {}), ("old", {"_use_new_zipfile_serialization": False})):
        torch.save({"model": state, "args": argparse.Namespace(a=1)}, f"{path}.{end}", **options)
    save_file(state, f"{path}.safe")
    return [pathlib.Path(f"{path}.{end}") for end in ("zip", "old", "safe")]


def attempt(path):
    """Read all tensors of a file."""
    file = read_weights(path)
    content = file.content.get("model", file.content)
    return {key: file.read(value) for key, value in content.items() if hasattr(value, "read")}


def test_files_cut_anywhere_are_refused_in_one_sentence():
    for path in every_way_to_write("whole"):
        whole = path.read_bytes()
        cut = pathlib.Path("cut.pth")
        attempt(path)
        for length in range(0, len(whole), max(1, len(whole) // 150)):
            cut.write_bytes(whole[:length])
            with pytest.raises(ValueError, match="^cut.pth: expected a ") as caught:
                attempt(cut)
            assert "\n" not in str(caught.value)


def test_damaged_bytes_are_found_or_harmless():
    random = np.random.default_rng(0)
    for path in every_way_to_write("whole"):
        whole, harm = path.read_bytes(), pathlib.Path("harm.pth")
        refused = 0
        for _ in range(300):
            damaged = bytearray(whole)
            for at in random.integers(0, len(whole), size=random.integers(1, 4)):
                damaged[at] = random.integers(256)
            harm.write_bytes(damaged)
            try:
                attempt(harm)
            except ValueError as error:
                assert str(error).startswith("harm.pth: ")
                refused += 1
        assert refused > 30


def test_damaged_numbers_of_an_archive_are_noticed():
    _, path = authors_file("papagei")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in the middle of some storage
    path.write_bytes(content)
    with pytest.raises(ValueError, match="weights.pth: .*damaged member .*CRC"):
        build("papagei", "tiny", checkpoint=path)
