"""Files that are no checkpoints, want something run, ask too much, or are damaged: one sentence."""

import functools
import os
import pathlib
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import pytest
import torch
from authors_files import authors_file, forget, labram, output, same, tiny
from torch import nn

from biox.backbones import build, load, save


@pytest.fixture(autouse=True)
def nothing_is_made_or_kept(tmp_path, monkeypatch):
    """Every file runs in a folder of its own, and no attack may leave its mark there."""
    monkeypatch.chdir(tmp_path)
    yield
    forget()
    assert not (tmp_path / "mark").exists()


def refused(path, reason="", whole=r"expected a whole checkpoint .*nothing of it was run \("):
    """Try to load a file; it must be refused in one line that begins with its name."""
    with pytest.raises(ValueError, match=f"^{path}: {whole}.*{reason}") as caught:
        build("labram", "tiny", checkpoint=path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


NO_CHECKPOINTS = {
    "empty": b"",
    "text": b"some notes\n",
    "page": b"\n<!DOCTYPE html><html><body>404</body></html>",
    "json": b'{"error": "not found", "a": [1]}',
    "json of 8": b'01234567{"error": "not found"}',
    "binary": b"\xff\xfe\x00\x01" * 9,
    "gzip": b"\x1f\x8b" + bytes(30),
    "pickle": pickle.dumps({"a": 1}),
    "list": pickle.dumps([1, 2]),
    "zip cut": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("what", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_said_in_one_sentence(what):
    pathlib.Path("x.pth").write_bytes(NO_CHECKPOINTS[what])
    refused("x.pth")


def test_pointers_of_git_lfs_are_named():
    pathlib.Path("x.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused("x.pth", whole="expected a checkpoint, found a git-lfs pointer")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_other_archives_and_contents_are_refused():
    with zipfile.ZipFile("x.pth", "w") as archive:
        archive.writestr("word/document.xml", "x")
    refused("x.pth")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "y.pth")
    refused("y.pth", "torchscript")
    torch.save([torch.zeros(3)], "z.pth")
    refused("z.pth", whole="blocks.0.*found no such key")
    torch.save(nn.Linear(2, 2), "w.pth")  # a whole module: an inert object, without weights
    refused("w.pth", whole="blocks.0.*found no such key")


# --- files that want something run


class Attack:
    """Pickled, it is a call of any function with any arguments."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


CALLS = {
    "system": Attack(os.system, "touch mark"),
    "eval": Attack(eval, "open('mark', 'w')"),
    "getattr": Attack(getattr, OrderedDict, "clear"),
    "loads": Attack(pickle.loads, pickle.dumps(Attack(os.system, "touch mark"))),
    "touch": Attack(pathlib.Path.touch, pathlib.Path("mark")),
    "partial": Attack(functools.partial, os.system, "touch mark"),
    "state": Attack(OrderedDict, state={"x": Attack(os.system, "touch mark")}),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_calls_of_python_and_torch_are_refused(call, zipped):
    state = tiny("labram").state_dict()
    content = {**(labram(state) if zipped else {"model": state}), "args": CALLS[call]}
    torch.save(content, "x.pth", _use_new_zipfile_serialization=zipped)
    refused("x.pth", r"it uses \w+\.\w" if zipped else "GLOBAL")
    assert os.listdir() == ["x.pth"]


def torch_zip(path, program, storages=()):
    """Write an archive as torch would, around a pickle and raw storages."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        for key, content in enumerate(storages):
            archive.writestr(f"archive/data/{key}", content)


@pytest.mark.parametrize(
    "name",
    ["posix.system", "nt.system", "builtins.eval", "__builtin__.eval", "commands.getoutput"]
    + ["importlib.import_module", "torch._C._jit", "torch.jit.load", "codecs.open", "sys.exit"]
    + ["copyreg._reconstructor", "_posixsubprocess.fork_exec", "torch.nnx.run", "builtins.getattr"]
    + ["builtins.exec", "io.open", "builtins.__import__", "subprocess.Popen", "torch.hub.load"]
    + ["torch.serialization.load"],
)
def test_names_of_any_system_are_refused(name):
    module, _, attribute = name.rpartition(".")
    program = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b"(X\x01\x00\x00\x00xtR."
    torch_zip("x.pth", program)
    refused("x.pth", "it uses")


def test_objects_of_packages_become_inert_and_are_never_imported():
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

    content["model"]["student.cls_token"] = Attack(install, "mark")
    torch.save(content, "x.pth")
    refused("x.pth", whole="cls_token: .*an object of vanished_package.tools.install")


# --- files that ask too much


def tensor_program(shape, stride, offset=0, numel=4, key="0", kind="FloatStorage"):
    """Pickle of one tensor, with any numbers in it."""

    def number(n):
        return pickle.dumps(n, 2)[2:-1]

    def text(value):
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    def row(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    view = storage + number(numel) + b"tQ" + number(offset) + row(shape) + row(stride) + b"\x89)"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"tR."


@pytest.mark.parametrize(
    "program",
    [
        tensor_program([5], [1]),  # larger than its storage
        tensor_program([2, 2], [3, 1]),
        tensor_program([2], [1], offset=3),
        tensor_program([2], [1], offset=-1),
        tensor_program([2], [-1], offset=2),
        tensor_program([2**80], [1]),
        tensor_program([2], [1], numel=10**12),  # more than the file has
        tensor_program([2], [1], numel=-1),
        tensor_program([2], [1], key="1"),  # not there
        tensor_program([2], [1], key="../x"),
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(X\x01\x00\x00\x00xtR.",
        b"\x80\x02X\xff\xff\xff\xff.",  # text of 4 GB
        b"\x80\x02\x82\x01.",  # an extension registry
        b"\x80\x02Pname\n.",
        b"\x80\x02]]b.",
        b"\x80\x02X\x01\x00\x00\x00x)R.",
        b".",
    ],
)
def test_programs_that_ask_too_much_are_refused_at_once(program):
    torch_zip("x.pth", program, [bytes(16)])
    refused("x.pth")


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02K\x05r\xff\xff\xff\x7f.",  # a memo of 2**31 places
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",  # lists in lists
        tensor_program([10**6, 10**6], [0, 0]),  # one number, a million million times
        b"\x80\x02ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n"
        b"K\x02\x85K\x01\x85\x89tR.",  # no numbers at all
    ],
)
def test_programs_that_are_only_odd_hold_no_weights(program):
    torch_zip("x.pth", program, [bytes(16)])
    refused("x.pth", whole="blocks.0.*found no such key")


# --- files that are cut short or damaged


@pytest.mark.parametrize("end", ["zip", "old", "safetensors"])
def test_files_cut_anywhere_are_refused_in_one_sentence(end):
    path, model = pathlib.Path(f"whole.{end}"), tiny("plain_cnn", seconds=5)
    if end == "safetensors":
        save(model, path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=end == "zip")
    whole, cut = path.read_bytes(), pathlib.Path("cut.pth")
    load(model, path)
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="^cut.pth: expected a ") as caught:
            load(model, cut)
        assert "\n" not in str(caught.value)


def test_damaged_numbers_of_an_archive_are_noticed():
    _, path = authors_file("papagei")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in the middle of some storage
    path.write_bytes(content)
    with pytest.raises(ValueError, match="^weights.pth: expected a whole checkpoint"):
        build("papagei", "tiny", checkpoint=path)
