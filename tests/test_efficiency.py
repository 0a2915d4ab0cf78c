"""What is counted follows from closed forms; tables and sentences follow from what was measured."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from biox.backbones import build
from biox.baselines import cardiogan_training
from biox.baselines.cardiogan_settings import PUBLISHED, CardioGAN
from biox.benchmark import costs, methods
from biox.report import efficiency

PLAN = methods.Plan(
    "fog-emg2eeg",
    new={"name": "labram", "size": "tiny", "seconds": 3.0},
    old={"name": "normwear", "size": "tiny", "seconds": 3.0},
    m=1, l=1, rank=4, n_prototypes=6, n_classes=2, windows=10,
    gan=CardioGAN(segments=7),
)  # fmt: skip


def test_multiply_adds_of_a_linear_layer_forward_and_backward():
    """Each of the two products of the backward pass costs as much as the forward one."""
    layer, x = nn.Linear(30, 20), torch.randn(8, 30, requires_grad=True)
    assert costs.multiply_adds(lambda: layer(x).sum().backward()) == 3 * 8 * 30 * 20


def test_attention_is_counted():
    q = torch.randn(2, 4, 10, 8)
    call = nn.functional.scaled_dot_product_attention
    assert costs.multiply_adds(lambda: call(q, q, q)) == 2 * (2 * 4 * 10 * 10 * 8)


def test_parameters_are_those_of_the_models():
    new, old = (build(**side) for side in (PLAN.new, PLAN.old))
    whole, d_new = sum(p.numel() for p in new.parameters()), new.token_shape(new.n_layers)[1]
    head = (d_new + 1) * 2
    d_old = old.token_shape(old.n_layers)[1]
    found = {m: methods.METHODS[m](PLAN, 2).n_parameters for m in ("KD", "KD-Contrast")}
    assert found == {"KD": whole + head, "KD-Contrast": whole + head + (d_new + 1) * d_old}
    assert methods.probe(PLAN, 2).n_parameters == head
    (n_l, d_l), d_m = old.token_shape(1), new.token_shape(2)[1]
    assert methods.bridge(PLAN, 2).n_parameters == d_m * 4 + 4 * n_l * 6 + 6 * d_l
    assert PLAN.n_bridge() == d_m * 4 + 4 * n_l * 6 + 6 * d_l


def test_an_epoch_of_cardiogan_is_of_segments():
    assert methods.cardiogan(PLAN, 4).rows == 7
    everything = replace(PLAN, gan=replace(PLAN.gan, segments=None))
    assert methods.cardiogan(everything, 4).rows == round(10 * 3.0 / 4.0)
    assert methods.kd(PLAN, 4).rows is None


def test_a_step_of_cardiogan_trains_all_its_networks(monkeypatch):
    """Noise cannot be translated, so its loss need not fall; every network has to move."""
    made, init = [], cardiogan_training.Training.__init__

    def kept(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(cardiogan_training.Training, "__init__", kept)
    training = methods.cardiogan(PLAN, 4)
    networks = made[0].networks
    before = [p.detach().clone() for p in networks.parameters()]
    assert np.isfinite(training.step())
    moved = [(p != q).any().item() for p, q in zip(networks.parameters(), before, strict=True)]
    assert np.mean(moved) > 0.9 and training.n_parameters == sum(p.numel() for p in before)


def test_adapters_stay_within_the_bridges_budget_and_nothing_else_learns():
    whole = sum(p.numel() for p in build(**PLAN.new).parameters())
    found = methods.lora_kd(PLAN, 2).n_parameters
    assert found < whole and 0.3 < found / PLAN.n_bridge() <= 1


@pytest.mark.parametrize("method", ["KD", "KD-Contrast", "Probe transfer", "BioX-Bridge"])
def test_every_step_learns(method):
    """The same batch again and again: its loss goes down."""
    training = methods.METHODS[method](PLAN, 4)
    losses = [float(training.step()) for _ in range(12)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_the_plan_of_the_published_models():
    plan = methods.published_plan("wesad-ppg2ecg", 635)
    assert (plan.new["name"], plan.new["size"]) == ("hubert_ecg", "small")
    assert plan.gan == PUBLISHED and plan.tiny().gan.width < 0.1
    with pytest.raises(ValueError, match="direction: expected one of"):
        methods.published_plan("bidmc-ecg2ppg", 1)


@pytest.fixture(scope="module")
def measured():
    return costs.measure_all(PLAN, 4, 2, ("KD",))


def test_methods_are_measured_in_processes_of_their_own(measured):
    rows = measured.set_index("method")
    assert (rows["not measured"] == "").all() and (rows["step"] > 0).all()
    assert rows["epoch"].to_numpy() == pytest.approx(3 * rows["step"].to_numpy())  # 10 in fours
    kd = methods.kd(PLAN, 4)
    assert rows.loc["KD", "multiply_adds"] == costs.multiply_adds(kd.step)
    # Weights, gradients and Adam's two moments, 4 bytes each, must fit in; a GB would be a leak.
    assert 16 * kd.n_parameters < rows.loc["KD", "memory"] < 1e9


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match=r"found \['Guess'\]"):
        costs.measure_all(PLAN, 4, 2, ("Guess",))


def table(**bridge):
    numbers = {"n_parameters": 1e6, "multiply_adds": 4e8, "step": 0.2, "memory": 8e7}
    rows = [
        {"method": "KD", **numbers, "not measured": ""},
        {"method": "LoRA-KD", "not measured": "peft is not installed"},
        {"method": "BioX-Bridge", **(numbers | bridge), "not measured": ""},
    ]
    return pd.DataFrame(rows).assign(epoch=1.0, batch=4)


def test_sentences_and_files_follow_from_the_numbers(tmp_path):
    costs_table = table(n_parameters=5e4, step=0.5)
    text = efficiency.verdict({"tiny": costs_table, "published": costs_table.iloc[:0]})
    assert "against KD the bridge has 0.05 x the trained parameters" in text
    assert "2.5 x the time of a step" in text
    assert "LoRA-KD: not measured (peft is not installed)" in text
    assert "**published**: left out of this run" in text
    shown = efficiency.readable(costs_table)
    assert shown.loc["BioX-Bridge", "trained parameters"] == "50,000"
    assert shown.loc["LoRA-KD", "step (ms)"] == ""
    efficiency.save({"tiny": costs_table}, tmp_path / "e.csv")
    assert (
        len(pd.read_csv(tmp_path / "e.csv")) == 3 and "**tiny**" in (tmp_path / "e.md").read_text()
    )
    with pytest.raises(ValueError, match="expected costs of KD"):
        efficiency.relative(costs_table.iloc[1:])
