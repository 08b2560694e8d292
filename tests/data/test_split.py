"""Splits by group and into folds: the properties that scikit-learn's have too."""

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

from jaxbig.data.speech import emodb
from jaxbig.data.split import group_k_fold, k_fold, split_groups
from jaxbig.errors import UserError

LABELS = np.repeat([0, 1, 2], [53, 31, 10])
GROUPS = np.random.default_rng(0).choice(list("abcdefgh"), 94, p=np.arange(1, 9) / 36)


def sizes(folds):
    return sorted(len(fold) for _, fold in folds)


def per_class(folds):
    return [[int((LABELS[fold] == label).sum()) for label in range(3)] for _, fold in folds]


def is_partition(folds):
    assert sorted(np.concatenate([fold for _, fold in folds]).tolist()) == list(range(94))
    for rest, fold in folds:
        assert sorted([*rest.tolist(), *fold.tolist()]) == list(range(94))


@pytest.mark.parametrize("k", [2, 5, 7])
def test_folds_are_as_even_as_those_of_scikit_learn(k):
    mine, theirs = k_fold(94, k), list(KFold(k, shuffle=True, random_state=0).split(LABELS))
    is_partition(mine)
    assert sizes(mine) == sizes(theirs)


@pytest.mark.parametrize("k", [2, 5, 7])
def test_stratified_folds_are_as_even_as_those_of_scikit_learn(k):
    mine = k_fold(94, k, seed=1, labels=LABELS)
    theirs = list(StratifiedKFold(k, shuffle=True, random_state=0).split(LABELS, LABELS))
    is_partition(mine)
    assert sizes(mine) == sizes(theirs)
    for label in range(3):
        assert sorted(row[label] for row in per_class(mine)) == sorted(row[label] for row in per_class(theirs))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_group_folds_are_as_even_as_those_of_scikit_learn(k):
    mine, theirs = group_k_fold(GROUPS, k), list(GroupKFold(k).split(GROUPS, groups=GROUPS))
    is_partition(mine)
    assert sizes(mine) == sizes(theirs)
    for rest, fold in mine:
        assert not set(GROUPS[rest]) & set(GROUPS[fold])


def test_seeds_matter_and_repeat():
    folds = [[fold.tolist() for _, fold in k_fold(94, 5, seed, LABELS)] for seed in (0, 0, 1)]
    assert folds[0] == folds[1] != folds[2]


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_groups_stay_together_and_the_share_is_near(fraction):
    chosen = set()
    for seed in range(5):
        first, second = split_groups(GROUPS, fraction, seed)
        assert sorted([*first.tolist(), *second.tolist()]) == list(range(94))
        assert not set(GROUPS[first]) & set(GROUPS[second])
        # No group that could still be moved would bring the share nearer by more than its own half.
        assert abs(len(second) / 94 - fraction) <= np.unique(GROUPS, return_counts=True)[1].max() / 94 / 2
        chosen.add(frozenset(GROUPS[second]))
    assert len(chosen) > 1


def test_emodb_by_speaker(real_data):
    clips = emodb(real_data("speech_emodb/emodb_8k_2s.npz"))
    train, test = split_groups(clips.columns["speaker"], 0.2)
    assert not set(clips.columns["speaker"][train]) & set(clips.columns["speaker"][test])
    assert 0.15 < len(test) / len(clips) < 0.25


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: split_groups(["a", "a"], 0.5), "cannot be split at 0.5"),
        (lambda: split_groups(["a", "b"], 1.0), "fraction=1.0"),
        (lambda: split_groups([], 0.5), "groups are [0]"),
        (lambda: k_fold(3, 4), "k=4 folds of 3"),
        (lambda: k_fold(4, 2, labels=[0, 0, 1]), "3 labels for 4"),
        (lambda: k_fold(4, 2, labels=[0, 0, 0, 1]), "class 1 has 1 examples for 2 folds"),
        (lambda: group_k_fold(["a", "a"], 2), "k=2 folds of 1 groups"),
    ],
)
def test_errors_say_what_and_how_to_mend(act, word):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    assert word in str(caught.value)
