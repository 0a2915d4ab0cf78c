"""A training that was killed goes on to the same bits; a state of another training is not used."""

import warnings

import pytest
import torch
from test_stacked import SEEDS, bridged, halves
from test_training import cached, models  # noqa: F401 (fixtures)

from biox.compute import Compute
from biox.resume import Resume
from biox.training import Pairs, fit_bridges

EPOCHS = 4


class KilledError(Exception):
    pass


def train(models, cached, path, kill_after=None, lr=1e-2, epochs=EPOCHS, target=None, at_most=None):  # noqa: F811
    """Train five bridges; weights and fits."""
    pair, val = halves(cached, target)
    made = bridged(models, cached)

    def watch(epoch, _):
        if epoch == kill_after:
            raise KilledError

    resume = None if path is None else Resume(path, seconds=0)
    how = {"compute": Compute(at_most=at_most), "resume": resume, "watch": watch}
    fits = fit_bridges(made, pair, val, lr, epochs, 6, SEEDS, **how)
    return fits, [p.detach().clone() for m in made for p in m.bridge.parameters()]


@pytest.mark.parametrize("at_most", [None, 1])
@pytest.mark.parametrize("kills", [[1], [2, 3], [EPOCHS]])
def test_a_killed_training_ends_with_the_same_bits(
    models,  # noqa: F811
    cached,  # noqa: F811
    tmp_path,
    capsys,
    kills,
    at_most,
):
    path = tmp_path / "resume" / "a.safetensors"
    fits, weights = train(models, cached, None, at_most=at_most)
    for kill in kills:
        with pytest.raises(KilledError):
            train(models, cached, path, kill, at_most=at_most)
        assert path.is_file()
    torch.rand(3)  # the global generator must not matter
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, found = train(models, cached, path, at_most=at_most)
    assert f"goes on after epoch {kills[-1]}" in capsys.readouterr().out
    assert again == fits
    assert all(torch.equal(a, b) for a, b in zip(found, weights, strict=True))
    assert list(path.parent.iterdir()) == []  # nothing stays


def test_a_kill_within_an_epoch_loses_that_epoch_alone(models, cached, tmp_path, capsys):  # noqa: F811
    """The third reading of targets after two epochs is in the midst of the third epoch."""

    class Breaking:
        def __init__(self, values, reads):
            self.values, self.reads, self.shape = values, reads, values.shape

        def __len__(self):
            return len(self.values)

        def split(self, batch):
            return self.values.split(batch)

        def __getitem__(self, rows):
            self.reads -= 1
            if self.reads < 0:
                raise KilledError
            return self.values[rows]

    expected = train(models, cached, None)
    pair, val = halves(cached)
    path = tmp_path / "a.safetensors"
    steps = 3  # in an epoch of 14 windows; and one reading for the fingerprint
    broken = Pairs(pair.pooled, Breaking(pair.target, 1 + 2 * steps + 2))
    with pytest.raises(KilledError):
        fit_bridges(
            bridged(models, cached), broken, val, 1e-2, EPOCHS, 6, SEEDS, resume=Resume(path, 0)
        )
    fits, weights = train(models, cached, path)
    assert "goes on after epoch 2" in capsys.readouterr().out
    assert fits == expected[0]
    assert all(torch.equal(a, b) for a, b in zip(weights, expected[1], strict=True))


@pytest.mark.parametrize(
    "change", [{"lr": 2e-2}, {"epochs": 5}, {"target": torch.ones(1)}, {"at_most": 1}]
)
def test_a_state_of_another_training_is_not_used(models, cached, tmp_path, change):  # noqa: F811
    if "target" in change:
        change = {"target": cached.last + 1e-3}
    path = tmp_path / "a.safetensors"
    with pytest.raises(KilledError):
        train(models, cached, path, 2)
    with pytest.warns(UserWarning, match="a.safetensors: expected .* found one of others"):
        fits, _ = train(models, cached, path, **change)
    assert fits == train(models, cached, None, **change)[0]


@pytest.mark.parametrize("keep", [0, 100, -7])
def test_a_file_cut_short_is_not_used(models, cached, tmp_path, keep):  # noqa: F811
    path = tmp_path / "a.safetensors"
    with pytest.raises(KilledError):
        train(models, cached, path, 2)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.warns(UserWarning, match="a.safetensors: .* foreign or truncated"):
        fits, _ = train(models, cached, path)
    assert fits == train(models, cached, None)[0]


def test_states_are_not_written_more_often_than_said(models, cached, tmp_path):  # noqa: F811
    pair, val = halves(cached)
    path, seen = tmp_path / "a.safetensors", []
    fit_bridges(
        bridged(models, cached), pair, val, 1e-2, 3, 6, SEEDS,
        watch=lambda *_: seen.append(path.exists()), resume=Resume(path, seconds=1e6),
    )  # fmt: skip
    assert seen == [False] * 3
