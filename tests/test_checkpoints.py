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


WRAPPED = {
    "lightning": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}},
    "released": lambda state: {"model": {f"backbone.{k}": v for k, v in state.items()}},
    "attribute": lambda state: {"state_dict": {f"encoder_a.{k}": v for k, v in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    "parallel": lambda state: {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
    "nested": lambda state: {"model": {"state_dict": state}, "epoch": 3},
    "double": lambda state: {"net": {k: v.double() if v.ndim else v for k, v in state.items()}},
}


@pytest.mark.parametrize("name", ["labram", "papagei", "normwear"])
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
    "an object of .*Model, not its state_dict": lambda state: {"model": vanished("Model")},
}  # fmt: skip


@pytest.mark.parametrize("what", FOREIGN)
def test_what_a_foreign_file_looks_like_is_said(what):
    torch.save(FOREIGN[what](dict(tiny("cbramod").state_dict())), "x.pt")
    forget()
    with pytest.raises(ValueError, match=f"^x.pt: .*differences.; it looks like.*{what}") as error:
        build("cbramod", "tiny", checkpoint="x.pt")
    assert "\n" not in str(error.value)


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
    state = dict(model.state_dict())
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")) if to_old else ():
        new = f"parametrizations.weight.{new}"
        state = {key.replace(new, old): value for key, value in state.items()}
    assert sum(key.endswith(("weight_g", "weight_v")) for key in state) == (2 if to_old else 0)
    torch.save({"model_state_dict": state}, "x.pt")
    same(output(build("hubert_ecg", "tiny", checkpoint="x.pt")), output(model))


PUBLISHED = {
    "labram_ISRUC": ("labram", "base", "student.", "model"),
    "labram_FOG": ("labram", "base", "student.", "model"),
    "hubertecg_small": ("hubert_ecg", "small", "", "model_state_dict"),
    "hubertecg_base": ("hubert_ecg", "base", "", "model_state_dict"),
    "hubertecg_large": ("hubert_ecg", "large", "", "model_state_dict"),
    "papagei_s": ("papagei", "small", "module.", None),
    "normwear": ("normwear", "base", "", "model"),
    "cbramod": ("cbramod", "base", "", None),
    "ecgfm": ("ecg_fm", "base_postnorm", "", "model"),
}


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")  # shapes are enough
@pytest.mark.parametrize("manifest", PUBLISHED)
def test_a_file_of_published_names_and_shapes_fits_its_size_alone(manifest):
    name, size, prefix, wrapper = PUBLISHED[manifest]
    shapes = json.loads((GOLDEN / f"manifest_{manifest}.json").read_text())["params"]
    state = {}
    for key, shape in shapes.items():
        counter = key.endswith("num_batches_tracked")
        value = torch.ones((), dtype=torch.int64 if counter else torch.float32)
        state[prefix + key] = value.expand(shape)  # one number on the disk
    about = {"epoch": 3, "cfg": {"model": {"layer_norm_first": False}}}  # of ECG-FM
    torch.save({wrapper: state, **about} if wrapper else state, "x.pth")
    for other in BACKBONES[name].sizes:
        with torch.device("meta"):
            backbone = build(name, other)
        if other == size:
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
    if short.input_spec.modality == "eeg":
        one = build(name, "tiny", checkpoint="weights.safetensors", n_channels=1)
        assert one.token_shape(0)[0] == 30 + (name == "labram")  # and a class token


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
    for half in (torch.float16, torch.bfloat16):
        save(model, path, dtype=half)
        halves = load_file(path)
        load(other, path)
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                assert halves[key].dtype == half
                same(other.state_dict()[key], value.to(half).float())


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


KEY = "blocks.2.mlp.fc1.weight"
# what is changed in the state dict (None: left out), and the sentence about it
FAULTS = [
    ({KEY: None}, f"{KEY}: expected .*100.*, found no such key"),
    ({"foo": torch.zeros(3)}, r"foo: expected no such key, found torch.float32 of shape \[3\]"),
    ({KEY: torch.zeros(5, 100)}, rf"{KEY}: expected .*found .*\[5, 100\]"),
    (
        {KEY: torch.zeros(400, 100).int()},
        f"{KEY}: expected torch.float32 .*torch.int32.*",
    ),
    ({KEY: "text"}, f"{KEY}: expected .*, found an object of type str"),
    (
        {"time_embed": torch.zeros(1, 30, 99)},
        r"time_embed: expected .*\[1, 30, 100\], found .*\[1, 30, 99\]",
    ),
    (
        {"cls_token": torch.full((1, 1, 100), torch.nan)},
        "cls_token: expected finite weights, found NaN or infinity",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), FAULTS)
def test_keys_that_do_not_fit_are_named_and_nothing_is_changed(change, sentence):
    state = {k: v for k, v in (tiny("labram").state_dict() | change).items() if v is not None}
    backbone = build("labram", "tiny")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    for prefix in ("", "student."):
        torch.save({"model": {prefix + key: value for key, value in state.items()}}, "x.pth")
        with pytest.raises(ValueError, match=f"^x.pth: {sentence}$"):
            load(backbone, "x.pth")
    same(dict(backbone.state_dict()), before)


def test_two_keys_that_become_one_and_absent_files_are_refused():
    state = dict(tiny("hubert_ecg").state_dict())
    (key,) = (key for key in state if key.endswith("parametrizations.weight.original0"))
    alias = key.replace("parametrizations.weight.original0", "weight_g")
    torch.save({**state, alias: state[key], 5: None}, "twice.pth")
    with pytest.raises(ValueError, match="twice.pth: .*expected one tensor of that name, found"):
        build("hubert_ecg", "tiny", checkpoint="twice.pth")
    with pytest.raises(FileNotFoundError, match="absent.pth: expected a checkpoint, found nothing"):
        build("labram", "tiny", checkpoint="absent.pth")
