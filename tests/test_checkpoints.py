"""Weights: files as the authors of the models write them, files of ours, files that do not fit."""

import argparse
import json
import pathlib
import sys
import warnings

import numpy as np
import pytest
import torch
from authors_files import (
    AUTHORS,
    authors_file,
    ecg_fm,
    forget,
    labram,
    output,
    same,
    tiny,
    vanished,
)  # fmt: skip
from fill import GOLDEN, fill, windows
from safetensors.torch import load_file

from biox.backbones import BACKBONES, build, load, save
from biox.backbones.labram import widen_time_embed


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    forget()


# --- the authors' files


@pytest.mark.parametrize("name", AUTHORS)
def test_a_file_as_its_authors_write_it_gives_the_same_outputs(name):
    model, path = authors_file(name)
    same(output(build(name, "tiny", checkpoint=path)), output(model))
    assert not [n for n in sys.modules if n.startswith("vanished_package")]


@pytest.mark.parametrize("name", ["papagei", "normwear", "ecg_fm", "cbramod"])
def test_files_older_than_the_zip_format_are_read(name):
    model, path = authors_file(name, _use_new_zipfile_serialization=False)
    same(output(build(name, "tiny", checkpoint=path)), output(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_single(dtype):
    def half(value):
        return value.to(dtype) if value.is_floating_point() else value

    model, path = authors_file("papagei", change=half)
    found = build("papagei", "tiny", checkpoint=path).state_dict()
    assert found["first_block_conv.conv.weight"].dtype == torch.float32
    for key, value in model.state_dict().items():
        same(found[key], value.to(dtype).float() if value.ndim else value)


def test_other_number_types_are_refused():
    _, path = authors_file("labram", change=lambda value: value.to(torch.int32))
    with pytest.raises(ValueError, match=r"expected torch.float32 of.*found torch.int32 of"):
        build("labram", "tiny", checkpoint=path)


WRAPPED = {
    "lightning": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}},
    "attribute": lambda state: {"state_dict": {f"encoder_a.{k}": v for k, v in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    "parallel": lambda state: {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
    "nested": lambda state: {"model": {"state_dict": state}, "epoch": 3},
    "double": lambda state: {"net": {k: v.double() if v.ndim else v for k, v in state.items()}},
}


@pytest.mark.parametrize("name", ["labram", "papagei"])
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_common_wrappers_come_off(name, wrapped):
    model = tiny(name)
    torch.save(WRAPPED[wrapped](dict(model.state_dict())), "x.ckpt")
    same(output(build(name, "tiny", checkpoint="x.ckpt")), output(model))


FOREIGN = {
    "fine-tuned: it has a head of its own .classifier.bias, classifier.weight": lambda state: {
        **state, "classifier.weight": torch.zeros(2, 2), "classifier.bias": torch.zeros(2),
    },
    "several models, under student., teacher.": lambda state: {
        f"{who}.{k}": v for k, v in state.items() for who in ("student", "teacher")
    },
    "a model of Hugging Face transformers, with keys such as enc": lambda state: {
        f"encoder.layer.{i}.attention.self.query.weight": torch.zeros(2, 2) for i in range(9)
    },
    "another model or library": lambda state: {f"conv{i}.w": torch.zeros(2) for i in range(9)},
    "another size of this model": lambda state: {k: torch.zeros(1) for k in state},
    "no weights at all": lambda state: {"optimizer": 1, "epoch": 2},
}  # fmt: skip


@pytest.mark.parametrize("what", FOREIGN)
def test_what_a_foreign_file_looks_like_is_said(what):
    torch.save(FOREIGN[what](dict(tiny("cbramod").state_dict())), "x.pt")
    with pytest.raises(ValueError, match=f"^x.pt: .*differences.; it looks like.*{what}") as error:
        build("cbramod", "tiny", checkpoint="x.pt")
    assert "\n" not in str(error.value)


def test_a_saved_object_is_told_from_its_weights():
    torch.save({"model": vanished("Model")}, "x.pt")
    forget()
    with pytest.raises(ValueError, match="an object of .*Model, not its state_dict"):
        build("cbramod", "tiny", checkpoint="x.pt")


class Node:
    """A node of omegaconf, whose value is in `_val`, or a container with `_content`."""

    def __init__(self, **held):
        vars(self).update(held)


@pytest.mark.parametrize("configuration", [
    {"model": argparse.Namespace(layer_norm_first=False)},
    argparse.Namespace(model=argparse.Namespace(layer_norm_first=0)),
    Node(_content={"model": Node(_content={"layer_norm_first": Node(_val=False)})}),
    {"model": {"layer_norm_first": "False"}}, {"model": {"layer_norm_first": np.False_}},
])  # fmt: skip
def test_a_norm_order_is_compared_whatever_its_type(configuration):
    model = tiny("ecg_fm")
    torch.save(ecg_fm(model.state_dict()) | {"cfg": configuration}, "x.pt")
    with pytest.raises(ValueError, match="layer_norm_first: expected True, found (False|0)"):
        build("ecg_fm", "tiny", checkpoint="x.pt")


def test_a_norm_order_that_no_file_states_is_said():
    model = tiny("ecg_fm")
    for content in ({"model": dict(model.state_dict())}, dict(model.state_dict())):
        torch.save(content, "x.pt")
        with pytest.warns(UserWarning, match="x.pt: the file does not state layer_norm_first"):
            build("ecg_fm", "tiny", checkpoint="x.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(model, "ours.safetensors")
        build("ecg_fm", "tiny", checkpoint="ours.safetensors")


@pytest.mark.parametrize("to_old", [True, False])
def test_both_names_of_weight_normalisation_are_understood(to_old):
    model = tiny("hubert_ecg")
    state = {}
    for key, value in model.state_dict().items():
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            if to_old:
                key = key.replace(f"parametrizations.weight.{new}", old)
        state[key] = value
    assert sum(key.endswith(("weight_g", "weight_v")) for key in state) == (2 if to_old else 0)
    torch.save({"model_state_dict": state}, "x.pt")
    same(output(build("hubert_ecg", "tiny", checkpoint="x.pt")), output(model))


def test_checkpoints_of_the_released_scripts_are_read():
    model = tiny("normwear")
    torch.save({"model": {f"backbone.{k}": v for k, v in model.state_dict().items()}}, "x.pth")
    same(output(build("normwear", "tiny", checkpoint="x.pth")), output(model))


@pytest.mark.parametrize(("size", "norm_first"), [("base", True), ("base_postnorm", False)])
def test_the_configuration_in_ecg_fms_file_decides_its_norm_order(size, norm_first):
    with torch.device("meta"):
        models = {name: build("ecg_fm", name) for name in ("base", "base_postnorm")}
    one = torch.ones(())
    state = {k: one.expand(v.shape) for k, v in models["base_postnorm"].state_dict().items()}
    torch.save(ecg_fm(state, norm_first), "ecg_fm.pt")
    load(models.pop(size), "ecg_fm.pt")
    (other,) = models.values()
    expected = f"layer_norm_first: expected {not norm_first}, found {norm_first}"
    with pytest.raises(ValueError, match=expected):
        load(other, "ecg_fm.pt")


PUBLISHED = {
    "labram_FOG": ("labram", "base", "student.", "model"),
    "hubertecg_small": ("hubert_ecg", "small", "", "model_state_dict"),
    "hubertecg_base": ("hubert_ecg", "base", "", "model_state_dict"),
    "hubertecg_large": ("hubert_ecg", "large", "", "model_state_dict"),
    "papagei_s": ("papagei", "small", "module.", None),
    "normwear": ("normwear", "base", "", "model"),
    "cbramod": ("cbramod", "base", "", None),
    "ecgfm": ("ecg_fm", "base_postnorm", "", "model"),
}


@pytest.mark.parametrize("manifest", PUBLISHED)
def test_a_file_of_published_names_and_shapes_fits_its_size_alone(manifest):
    name, size, prefix, wrapper = PUBLISHED[manifest]
    shapes = json.loads((GOLDEN / f"manifest_{manifest}.json").read_text())["params"]
    state = {}
    for key, shape in shapes.items():
        counter = key.endswith("num_batches_tracked")
        value = torch.ones((), dtype=torch.int64 if counter else torch.float32)
        state[prefix + key] = value.expand(shape)  # one number on the disk
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, "x.pth")
    for other in BACKBONES[name].sizes:
        with torch.device("meta"):
            backbone = build(name, other)
        if other == size or {name, other} == {"ecg_fm", "base"}:  # without a cfg, either order
            load(backbone, "x.pth")
        else:
            with pytest.raises(ValueError, match="^x.pth: .*expected .*, found "):
                load(backbone, "x.pth")


# --- windows of other lengths and channels


def test_labrams_published_time_embedding_serves_longer_windows():
    short = fill(build("labram", "base", seconds=3))
    torch.save(labram(short.state_dict()), "labram-base.pth")
    with pytest.warns(UserWarning, match="time_embed for 16 s is made to serve 30 s .interpolate"):
        long = build("labram", "base", checkpoint="labram-base.pth", seconds=30)
    rows, old = long.time_embed[0].detach().numpy(), short.time_embed[0].detach().numpy()
    at = np.linspace(0, 15, 30)
    expected = np.stack([np.interp(at, np.arange(16), column) for column in old.T], axis=1)
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    same(long.blocks[11].mlp.fc2.weight, short.blocks[11].mlp.fc2.weight)

    torch.manual_seed(1)
    random = build("labram", "base", seconds=20).time_embed
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="extend"):
        extended = build("labram", "base", "labram-base.pth", seconds=20, widen="extend").time_embed
    same(extended[:, :16], short.time_embed)
    same(extended[:, 16:], random[:, 16:])


def test_fewer_seconds_take_the_first_rows():
    table = windows("table", (1, 30, 4))
    for how in ("interpolate", "extend"):
        same(widen_time_embed(table, torch.zeros(1, 16, 4), how), table[:, :16])
    with pytest.raises(ValueError, match="expected 'interpolate' or 'extend', found 'stretch'"):
        widen_time_embed(table, table, "stretch")


def test_normwears_analytic_table_follows_the_window():
    _, path = authors_file("normwear")
    short = build("normwear", "tiny", checkpoint=path, seconds=2)
    assert short.token_shape(0)[0] < tiny("normwear").token_shape(0)[0]
    same(short.pos_embed, build("normwear", "tiny", seconds=2).pos_embed)


@pytest.mark.parametrize("name", ["labram", "hubert_ecg", "papagei", "ecg_fm", "cbramod"])
def test_the_same_weights_serve_another_window(name):
    save(tiny(name), "weights.safetensors")
    seconds = {"ecg_fm": 5, "cbramod": 4, "labram": 3}.get(name, 30)
    short = build(name, "tiny", checkpoint="weights.safetensors", seconds=seconds)
    assert short.token_shape(0)[0] < tiny(name).token_shape(0)[0]
    assert torch.isfinite(output(short)).all()
    if name == "labram":
        one = build(name, "tiny", checkpoint="weights.safetensors", n_channels=1)
        assert one.token_shape(0) == (1 + 30, 100)


# --- our files


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_weights_survive_a_round_trip(name):
    model = tiny(name)
    save(model, "new/folder/weights.safetensors")
    other = build(name, "tiny")
    assert not torch.allclose(output(other), output(model), atol=1e-3)
    load(other, "new/folder/weights.safetensors")
    same(output(other), output(model))
    (path,) = pathlib.Path("new/folder").iterdir()
    save(model, path, dtype=torch.float16)
    halves = load_file(path)
    load(other, path)
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            assert halves[key].dtype == torch.float16
            same(other.state_dict()[key], value.half().float())


def test_a_file_is_replaced_whole_or_not_at_all(monkeypatch):
    path = pathlib.Path("weights.safetensors")
    save(tiny("labram"), path)
    before = path.read_bytes()

    def full_disk(self, content):
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError("no space left")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save(tiny("papagei"), path)
    assert path.read_bytes() == before and list(pathlib.Path().iterdir()) == [path]


# --- files that do not fit


def broken(state, what):
    """A state dict with one fault, and the sentence about it."""
    key = "blocks.2.mlp.fc1.weight"
    faults = {
        "missing": (lambda: state.pop(key), f"{key}: expected .*100.*, found no such key"),
        "unknown": (
            lambda: state.update(foo=torch.zeros(3)),
            r"foo: expected no such key, found torch.float32 of shape \[3\]",
        ),
        "shape": (
            lambda: state.update({key: state[key][:5]}),
            rf"{key}: expected .*found .*\[5, 100\]",
        ),
        "no tensor": (
            lambda: state.update({key: "text"}),
            f"{key}: expected .*, found an object of type str",
        ),
        "table": (
            lambda: state.update(time_embed=torch.zeros(1, 30, 99)),
            r"time_embed: expected .*\[1, 30, 100\], found .*\[1, 30, 99\]",
        ),
        "not finite": (
            lambda: state.update(cls_token=state["cls_token"] * float("nan")),
            "cls_token: expected finite weights, found NaN or infinity",
        ),
    }
    change, sentence = faults[what]
    change()
    return state, sentence


@pytest.mark.parametrize(
    "what", ["missing", "unknown", "shape", "no tensor", "table", "not finite"]
)
@pytest.mark.parametrize("prefix", ["", "student."])
def test_keys_that_do_not_fit_are_named_and_nothing_is_changed(what, prefix):
    state, sentence = broken(dict(tiny("labram").state_dict()), what)
    torch.save({"model": {prefix + key: value for key, value in state.items()}}, "x.pth")
    backbone = build("labram", "tiny")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=f"^x.pth: {sentence}$"):
        load(backbone, "x.pth")
    same(dict(backbone.state_dict()), before)


def test_files_of_another_model_or_size_are_refused():
    _, path = authors_file("papagei")
    with pytest.raises(
        ValueError, match=r"^weights.pth: basicblock.*: expected .*first of \d+ diff"
    ):
        build("papagei", "small", checkpoint=path)
    with pytest.raises(ValueError, match=r"^weights.pth: .*expected .*, found no such key"):
        build("hubert_ecg", "tiny", checkpoint=path)
    save(tiny("labram"), "ours.safetensors")
    with pytest.raises(ValueError, match=r"ours.safetensors: blocks.*: expected .*\[200\], found"):
        build("labram", "base", checkpoint="ours.safetensors")
    state = dict(tiny("labram").state_dict())
    torch.save({**state, "student.cls_token": state["cls_token"], 5: None}, "twice.pth")
    with pytest.raises(ValueError, match="twice.pth: .*expected .*, found "):
        build("labram", "tiny", checkpoint="twice.pth")
    with pytest.raises(FileNotFoundError, match="absent.pth: expected a checkpoint, found nothing"):
        build("labram", "tiny", checkpoint="absent.pth")
