"""Checkpoints as their authors write them: read, refused if they do not fit, and converted."""

import hashlib
import json
import os
import pathlib
import sys

import numpy as np
import pytest
import torch
from authors_files import AUTHORS, authors_file, forget, labram, output, same, tiny, vanished
from fill import GOLDEN, fill, windows
from safetensors import safe_open
from torch import nn

from biox.__main__ import main
from biox.backbones import build, load, save
from biox.backbones.checkpoints import convert, match_weights, recognise
from biox.backbones.labram import widen_time_embed
from biox.backbones.weight_files import SafeTensor, WeightFile, read_weights


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    forget()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", AUTHORS)
def test_a_file_as_its_authors_write_it_gives_the_same_outputs(name, zipped):
    model, path = authors_file(name, _use_new_zipfile_serialization=zipped)
    same(output(build(name, "tiny", checkpoint=path)), output(model))
    file = read_weights(path)
    assert file.format == ("torch zip" if zipped else "torch before 1.6")
    config = ("vanished_package.configuration.HuBERTECGConfig",)
    assert file.records == (config if name == "hubert_ecg" else ())
    assert not [n for n in sys.modules if n.startswith("vanished_package")]


@pytest.mark.parametrize("name", AUTHORS)
def test_own_reader_finds_the_numbers_that_torch_finds(name):
    _, path = authors_file(name)
    if name == "hubert_ecg":
        vanished("HuBERTECGConfig")
    reference = torch.load(path, weights_only=False)  # written by this test
    file = read_weights(path)
    stack = [(reference, file.content)]
    compared = 0
    while stack:
        expected, found = stack.pop()
        if isinstance(expected, dict):
            assert list(expected) == list(found)
            stack += zip(expected.values(), found.values(), strict=True)
        elif isinstance(expected, torch.Tensor):
            same(file.read(found), expected)
            compared += 1
    assert compared > 20


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(protocol):
    model, path = authors_file("labram", pickle_protocol=protocol)
    same(output(build("labram", "tiny", checkpoint=path)), output(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_single_and_said(dtype):
    def half(value):
        return value.to(dtype) if value.is_floating_point() else value

    model, path = authors_file("papagei", change=half)
    with pytest.warns(UserWarning, match=rf"weights.pth: weights of {str(dtype)[6:]} are read as"):
        found = build("papagei", "tiny", checkpoint=path)
    assert found.first_block_conv.conv.weight.dtype == torch.float32
    for key, value in model.state_dict().items():
        same(found.state_dict()[key], value.to(dtype).float() if value.ndim else value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_other_number_types_are_refused(dtype):
    _, path = authors_file("labram", change=lambda value: value.to(dtype))
    with pytest.raises(ValueError, match=rf"blocks.*expected torch.float32 of.*found {dtype} of"):
        build("labram", "tiny", checkpoint=path)


@pytest.mark.parametrize("zipped", [True, False])
def test_shared_storages_strides_and_parameters_are_read(zipped):
    row = windows("row", (24,))
    tensors = {
        "whole": row,
        "part": row[3:9].view(2, 3),
        "turned": row.view(4, 6).t(),
        "steps": row[1::5],
        "parameter": nn.Parameter(row.view(2, 3, 4).permute(2, 0, 1)),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
        "complex": torch.complex(row, -row),
        "bits": row.bfloat16(),
    }
    torch.save(tensors, "x.pt", _use_new_zipfile_serialization=zipped)
    file = read_weights("x.pt")
    for key, tensor in tensors.items():
        found = file.read(file.content[key])
        same(found, tensor.detach())
        assert found.is_contiguous() and found.dtype == tensor.dtype


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


def test_bridge_probe_checkpoints_of_normwear_are_read():
    model = tiny("normwear")
    torch.save({"model": {f"backbone.{k}": v for k, v in model.state_dict().items()}}, "x.pth")
    same(output(build("normwear", "tiny", checkpoint="x.pth")), output(model))


def test_normwears_analytic_table_follows_the_window():
    _, path = authors_file("normwear")
    short = build("normwear", "tiny", checkpoint=path, seconds=2)
    assert short.token_shape(0)[0] < tiny("normwear").token_shape(0)[0]
    same(short.pos_embed, build("normwear", "tiny", seconds=2).pos_embed)


# --- published sizes, by name and shape only

PUBLISHED = {
    "labram_FOG": ("labram", "base", "student."),
    "hubertecg_small": ("hubert_ecg", "small", ""),
    "hubertecg_base": ("hubert_ecg", "base", ""),
    "hubertecg_large": ("hubert_ecg", "large", ""),
    "papagei_s": ("papagei", "small", "module."),
    "normwear": ("normwear", "base", ""),
}


@pytest.mark.parametrize("manifest", PUBLISHED)
def test_a_published_file_fits_one_backbone(manifest):
    name, size, prefix = PUBLISHED[manifest]
    shapes = json.loads((GOLDEN / f"manifest_{manifest}.json").read_text())["params"]
    state = {}
    for key, shape in shapes.items():
        counter = key.endswith("num_batches_tracked")
        dtype = torch.int64 if counter else torch.float32
        state[prefix + key] = SafeTensor(tuple(shape), dtype, None)
    wrapper = {"labram": "model", "normwear": "model", "hubert_ecg": "model_state_dict"}
    content = {wrapper[name]: state, "epoch": 3} if name in wrapper else state
    file = WeightFile(pathlib.Path("x.pth"), "torch zip", content)
    ((found, fitting, match),) = recognise(file)
    assert (found, fitting, match.prefix) == (name, size, prefix)
    assert len(match.tensors) + sum(match.left_over.values()) == len(shapes)


def test_the_published_labram_serves_30_seconds():
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
    kept = build("labram", "base", seconds=30)
    before = kept.time_embed.detach().clone()
    kept.widen = "extend"
    with pytest.warns(UserWarning, match="extend"):
        load(kept, "labram-base.pth")
    same(kept.time_embed[:, :16], short.time_embed)
    same(kept.time_embed[:, 16:], before[:, 16:])


def test_how_to_widen_is_a_choice_of_build_where_there_is_something_to_widen():
    short = build("labram", "base", seconds=16)
    save(short, "short.safetensors")
    with pytest.warns(UserWarning, match="extend"):
        kept = build("labram", "base", "short.safetensors", seconds=20, widen="extend")
    same(kept.time_embed[:, :16], short.time_embed)
    with pytest.raises(ValueError, match="papagei: expected no `widen`.*found 'extend'"):
        build("papagei", "tiny", widen="extend")


def test_fewer_seconds_take_the_first_rows():
    table = windows("table", (1, 30, 4))
    for how in ("interpolate", "extend"):
        same(widen_time_embed(table, torch.zeros(1, 16, 4), how), table[:, :16])
    with pytest.raises(ValueError, match="expected 'interpolate' or 'extend', found 'stretch'"):
        widen_time_embed(table, table, "stretch")


# --- files that do not fit


def broken(state, what):
    """A state dict with one fault, and what the sentence about it says."""
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
        "no tensor": (lambda: state.update({key: "text"}), f"{key}: expected .*, found a str"),
        "table": (
            lambda: state.update(time_embed=torch.zeros(1, 30, 99)),
            r"time_embed: expected .*\[1, 30, 100\], found .*\[1, 30, 99\]",
        ),
    }
    change, sentence = faults[what]
    change()
    return state, sentence


@pytest.mark.parametrize("what", ["missing", "unknown", "shape", "no tensor", "table"])
@pytest.mark.parametrize("prefix", ["", "student."])
def test_keys_that_do_not_fit_are_named(what, prefix):
    state, sentence = broken(dict(tiny("labram").state_dict()), what)
    torch.save({"model": {prefix + key: value for key, value in state.items()}}, "x.pth")
    with pytest.raises(ValueError, match=f"^x.pth: {sentence}$"):
        build("labram", "tiny", checkpoint="x.pth")


def test_the_model_that_would_fit_is_named():
    _, path = authors_file("papagei")
    with pytest.raises(
        ValueError, match=r"block.*: expected .*; the file fits build.*papagei.*tiny"
    ):
        build("papagei", "small", checkpoint=path)
    with pytest.raises(ValueError, match=r"weights.pth: .*fits build\('papagei', 'tiny'\)$"):
        build("hubert_ecg", "tiny", checkpoint=path)


def test_nothing_is_changed_by_a_file_that_does_not_fit():
    model = tiny("labram")
    _, path = authors_file("papagei")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError):
        load(model, path)
    same(dict(model.state_dict()), before)


# --- the commands


@pytest.mark.parametrize("name", AUTHORS)
def test_convert_keeps_the_weights_and_says_where_they_come_from(name, capsys):
    model, path = authors_file(name)
    assert main(["checkpoints", "convert", str(path), "ours.safetensors"]) == 0
    assert f'build("{name}", "tiny", checkpoint="ours.safetensors")' in capsys.readouterr().out
    with safe_open("ours.safetensors", "pt") as file:
        header = file.metadata()
        assert sorted(file.keys()) == sorted(model.state_dict())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert header == {"format": "pt", "name": name, "size": "tiny", "source_sha256": sha256}
    same(output(build(name, "tiny", checkpoint="ours.safetensors")), output(model))


def test_convert_leaves_learnt_tables_as_they_are():
    torch.save(labram(fill(build("labram", "base", seconds=3)).state_dict()), "x.pth")
    assert convert("x.pth", "ours.safetensors") == ("labram", "base")
    with safe_open("ours.safetensors", "pt") as file:
        assert file.get_slice("time_embed").get_shape() == [1, 16, 200]


def test_convert_writes_whole_or_not_at_all(capsys, monkeypatch):
    _, path = authors_file("labram")
    pathlib.Path("cut.pth").write_bytes(path.read_bytes()[:-200])
    pathlib.Path("ours.safetensors").write_bytes(b"before")
    torch.save({"w": torch.zeros(3)}, "other.pth")
    for source, sentence in (
        ("cut.pth", "cut.pth: expected a checkpoint"),
        ("other.pth", "other.pth: expected the weights of a backbone"),
        ("absent.pth", "absent.pth: expected a checkpoint, found nothing"),
    ):
        assert main(["checkpoints", "convert", source, "ours.safetensors"]) == 1
        err = capsys.readouterr().err
        assert err.startswith(sentence) and err.count("\n") == 1
    assert main(["checkpoints", "convert", str(path), "ours.pth"]) == 1
    assert "ours.pth: expected another file to write" in capsys.readouterr().err
    assert pathlib.Path("ours.safetensors").read_bytes() == b"before"
    assert sorted(os.listdir()) == ["cut.pth", "other.pth", "ours.safetensors", "weights.pth"]


def test_inspect_says_what_a_file_is(capsys):
    model, path = authors_file("hubert_ecg", change=lambda v: v.half())
    assert main(["checkpoints", "inspect", str(path)]) == 0
    out = {
        line.split(":")[0]: line.split(":", 1)[1].strip()
        for line in capsys.readouterr().out.splitlines()
    }
    numbers = sum(value.numel() for value in model.state_dict().values())
    assert out["format"] == "torch zip"
    assert out["bytes"] == f"{path.stat().st_size:,}"
    assert out["fits"] == 'build("hubert_ecg", "tiny", checkpoint="weights.pth")'
    assert out["wrapper"] == "model_state_dict" and out["prefix"] == "none"
    assert out["weights"] == f"{numbers:,} numbers in {len(model.state_dict())} tensors"
    assert out["dtype"] == "float16"
    assert out["left over"] == "1 x final_proj., 1 x masked_spec_embed"
    assert out["objects"] == "vanished_package.configuration.HuBERTECGConfig (not built)"
    assert len(out["sha256"]) == 64


def test_inspect_knows_its_limits(capsys):
    torch.save({"w": torch.zeros(3), 5: None}, "other.pth")
    assert main(["checkpoints", "inspect", "other.pth"]) == 0
    assert "no backbone of biox" in capsys.readouterr().out
    pathlib.Path("page.pth").write_bytes(b"<html>not found</html>")
    assert main(["checkpoints", "inspect", "page.pth"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("page.pth: expected a checkpoint") and not printed.out


def test_match_needs_no_memory():
    model, path = authors_file("labram")
    with torch.device("meta"):
        empty = build("labram", "tiny")
    match = match_weights(read_weights(path), empty)
    assert not match.problems and match.tensors.keys() == model.state_dict().keys()
    assert match.left_over == {
        "lm_head (beside student.)": 1,
        "projection_head (beside student.)": 1,
        "mask_token": 1,
        "norm.": 1,
        "lm_head.": 1,
        "pos_embed": 1,
    }


def test_own_files_round_trip_with_their_window():
    save(tiny("labram", seconds=3), "ours.safetensors")
    same(output(build("labram", "tiny", checkpoint="ours.safetensors")), output(tiny("labram")))


@pytest.mark.parametrize(("size", "norm_first"), [("base", True), ("base_postnorm", False)])
def test_the_configuration_in_ecg_fms_file_decides_its_norm_order(size, norm_first):
    with torch.device("meta"):
        models = {name: build("ecg_fm", name) for name in ("base", "base_postnorm")}
    other = next(name for name in models if name != size)
    weights = models["base_postnorm"].state_dict().items()
    state = {key: SafeTensor(tuple(v.shape), v.dtype, v.clone) for key, v in weights}
    content = {"model": state, "cfg": {"model": {"layer_norm_first": norm_first}}}
    file = WeightFile(pathlib.Path("ecg_fm.pt"), "torch zip", content)
    assert not match_weights(file, models[size]).problems
    problem = ("cfg.model.layer_norm_first", str(not norm_first), str(norm_first))
    assert match_weights(file, models[other]).problems == [problem]
    assert [fit[:2] for fit in recognise(file)] == [("ecg_fm", size)]


def test_weights_that_are_not_finite_are_refused():
    _, path = authors_file("papagei", change=lambda v: v * float("nan") if v.ndim == 3 else v)
    with pytest.raises(ValueError, match=r"conv.weight: expected finite weights, found NaN"):
        build("papagei", "tiny", checkpoint=path)
