"""What chooses epochs and learning rates: against scikit-learn, and against answers themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score
from test_stacked import bridged, halves
from test_training import cached, models  # noqa: F401

from biox.agreement import agreement, best, best_epoch
from biox.losses import Objective
from biox.training import fit_bridges, predict

CLASSES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@given(CLASSES)
@pytest.mark.filterwarnings("ignore:y_pred contains classes", "ignore:A single label")
def test_without_doubt_agreement_is_balanced_accuracy_with_the_teacher_as_truth(both):
    answers, teacher = np.array(both).T
    sure = np.eye(4)[answers]
    assert agreement(sure, teacher) == pytest.approx(balanced_accuracy_score(teacher, answers))


@given(CLASSES, st.integers(0, 2**32 - 1))
def test_agreement_is_what_answers_drawn_from_the_probabilities_have_on_average(both, seed):
    teacher = np.array(both).T[1]
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(4), len(teacher))
    by_class = {}
    for row, c in zip(probabilities, teacher, strict=True):
        by_class.setdefault(c, []).append(row[c])
    expected = np.mean([np.mean(own) for own in by_class.values()])
    assert agreement(torch.from_numpy(probabilities), teacher) == pytest.approx(expected)


@given(st.floats(0, 1))
def test_the_same_answer_to_all_is_worth_one_class_at_most(p):
    teacher = torch.tensor([0] * 90 + [1] * 10)
    assert agreement(torch.tensor([[p, 1 - p]]).expand(100, 2), teacher) == pytest.approx(0.5)


def test_of_equal_agreement_the_lower_loss_and_then_the_earlier_wins():
    assert best([0.5, 0.7, 0.7], [0.1, 0.3, 0.2]) == 2
    assert best([0.7, 0.7], [0.2, 0.2]) == 0
    assert best_epoch([0.9, 0.5, 0.6, 0.6], [0.0, 0.1, 0.3, 0.3]) == 2  # 0 is before training


def by_class(teacher, probabilities):
    own = [probabilities[teacher == c, c].mean() for c in sorted(set(teacher.tolist()))]
    return sum(own) / len(own)


@pytest.mark.parametrize("align", ["last", "input"])
def test_bridges_keep_the_epoch_that_agrees_best(models, cached, align):  # noqa: F811
    """Answers are taken from the models themselves after each epoch, the teacher's from h_L."""
    pair, val = halves(cached)  # with align: input, last layers stand in for what layer l reads
    ours, seen = bridged(models, cached), []
    old, head = ours[0].old, ours[0].head
    with torch.no_grad():
        last = cached.last if align == "last" else ours[0].tail(cached.last)
        head.bias.sub_(head(old.pool(last)).mean(0))  # so that no class takes all
        teacher = head(old.pool(last))[14:].argmax(1).numpy()

    def watch(epoch, trained):
        said = [predict(model, val.pooled).numpy() for model in trained]
        seen.append([by_class(teacher, own) for own in said])

    objective = Objective(align=align)
    fits = fit_bridges(ours, pair, val, 1e-2, 5, 6, list(range(len(ours))), objective, watch)
    assert len({round(x, 6) for row in seen for x in row}) > 1
    for model, fit, curve in zip(ours, fits, np.transpose(seen), strict=True):
        np.testing.assert_allclose(fit.val_agreement[1:], curve, rtol=1e-5)
        order = sorted(range(5), key=lambda i: (-curve[i], fit.val_loss[1 + i], i))
        assert fit.best_epoch == 1 + order[0]
        kept = by_class(teacher, predict(model, val.pooled).numpy())
        assert kept == pytest.approx(max(curve), rel=1e-5)
