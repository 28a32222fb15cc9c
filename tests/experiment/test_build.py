"""Every choice that a config offers becomes a step; what does not go together is refused in one line."""

import jax
import numpy as np
import pytest

from configs import ukbench
from fgis.errors import UserError
from fgis.experiment import build
from fgis.experiment.config import CHOICES, PAIR_LOSSES, read_settings
from fgis.experiment.differences import to_plain
from fgis.learning import samplers
from fgis.learning.train import TrainingData, init_states, train

LABELS = np.repeat(np.arange(12), 4) * 1000  # labels may be any integers
COARSE = LABELS // 3000
FEATURES = np.random.default_rng(0).random((48, 6), np.float32)


def settings(**overrides):
    config = ukbench.get_config()
    config.update_from_flattened_dict({
        "seeds": 1, "folds": 2, "head.residual.rank": 3, "sampler.pk.classes": 6, "sampler.frequency.classes": 6,
        **{key.replace("__", "."): value for key, value in overrides.items()},
    })  # fmt: skip
    return read_settings(to_plain(config))


def built(coarse=COARSE, **overrides):
    chosen = settings(**overrides)
    prepare = build.build_scoring(chosen).prepare
    images = build.Images(LABELS, coarse, 6, lambda rows: np.asarray(prepare(FEATURES[rows])))
    return build.build_experiment(chosen, images)


def test_a_power_that_makes_features_infinite_is_refused():
    for normalize in (False, True):
        prepare = build.build_scoring(settings(inputs__power=1e5, inputs__normalize=normalize)).prepare
        with pytest.raises(UserError, match=r"config\.inputs\.power: 100000 makes features infinite"):
            prepare(1 + FEATURES)


@pytest.mark.parametrize("miner", [name for name in CHOICES["miner"] if name != "given"])
def test_every_miner_takes_losses_over_triplets(miner):
    for loss in ("soft_margin", "margin"):
        assert len(built(miner__name=miner, loss__name=loss).plans) == 3


@pytest.mark.parametrize("loss", CHOICES["loss"])
def test_every_loss_takes_the_whole_batch(loss):
    built(miner__name="batch_all", loss__name=loss)


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_losses_over_pairs_take_mined_ones_and_schedules(loss):
    built(miner__name="semi_hard", loss__name=loss)
    built(miner__name="schedule", miner__schedule__second="batch_all", loss__name=loss)


@pytest.mark.parametrize("sampler", CHOICES["sampler"])
def test_every_sampler(sampler):
    lists = samplers.SAMPLERS[sampler].lists_triplets
    more = {"sampler__scored_triplets__negative_ranks": (12, 20)}  # of the 23 others of a run
    built(sampler__name=sampler, miner__name="given" if lists else "semi_hard", **more)


@pytest.mark.parametrize("group", ["head", "reduction", "optimizer"])
def test_every_other_choice(group):
    for name in CHOICES[group]:
        built(**{f"{group}__name": name})


def test_an_optimiser_moves_parameters_and_what_the_loss_learns_but_no_constants():
    experiment = built(
        miner__name="batch_all", loss__name="proxy_anchor", optimizer__name="adamw",
        optimizer__adamw__weight_decay=0.5, head__residual__whiten=0.1,
    )  # fmt: skip
    before = init_states(experiment.recipe, experiment.runs).params
    features = build.build_scoring(settings()).prepare(FEATURES)
    data = TrainingData(features, LABELS)
    after = train(experiment.recipe, experiment.runs, data, steps=3, record_every=3).params
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert moved["params"] == {"down": {"kernel": True}, "up": {"kernel": True}}
    assert moved["constants"] == {"center": False}
    # Runs 0, 1 and 2 see all objects, and all but those of fold 0 and 1: only proxies of classes they see exist.
    unseen = [np.isin(np.unique(LABELS), LABELS[experiment.folds == plan.fold]) for plan in experiment.plans]
    for run in range(3):
        assert (after["learned"]["proxies"][run] != 0).any(axis=1).tolist() == (~unseen[run]).tolist()
        changed = before["learned"]["proxies"][run] != after["learned"]["proxies"][run]
        assert changed.any(axis=1).tolist() == (~unseen[run]).tolist()


REFUSED = {
    "memory below a batch": ({"memory__size": 5}, "config.memory.size: 5 is less than a batch of 24"),
    "photo folds": ({"photo_folds": 49}, "config.photo_folds: 49 folds of 48 photos"),
    "folds": ({"folds": 13}, "config.folds: 13 folds of 12 objects"),
    "no positives": ({"sampler__pk__per_class": 1}, "config.sampler.pk.per_class: 1 leaves no positive in any batch"),
    "no negatives": ({"sampler__pk__classes": 1}, "config.sampler.pk.classes: 1 leaves no negative in any batch"),
    "no triplets": (
        {"sampler__name": "uniform", "sampler__uniform__batch": 2}, "config.sampler.uniform.batch: 2 images hold no"
    ),
    "ranks": (
        {"sampler__name": "scored_triplets", "miner__name": "given"},
        "config.sampler.scored_triplets.negative_ranks: (25, 50) found, but 27 images are needed for ranks behind 25 "
        "(scorers: 1), and a run sees 24; write lower ranks",
    ),
    "margins": (
        {"loss__name": "opposites", "miner__name": "batch_all", "loss__opposites__opposite_margin": 0.1},
        "config.loss.opposites.opposite_margin",
    ),
    "bounds": (
        {"miner__name": "distance_weighted", "miner__distance_weighted__maximum": 0.3},
        "config.miner.distance_weighted.minimum",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(case):
    overrides, found = REFUSED[case]
    with pytest.raises(UserError) as error:
        built(**overrides)
    assert found in str(error.value)
    assert "\n" not in str(error.value)


def test_opposites_need_coarse_labels():
    with pytest.raises(UserError, match="path,label,coarse"):
        built(coarse=None, loss__name="opposites", miner__name="batch_all")


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (np.zeros(12, int), "the 12 images show one object alone"),
        (np.arange(12), "images without fold 0 show every object once"),
        (np.repeat([0, 1], 6), "images without fold 0 show one object alone"),
    ],
)
def test_images_that_nothing_can_be_learnt_from_are_refused(labels, line):
    chosen = settings(folds=0 if len(set(labels)) == 1 else 2, closed_set=len(set(labels)) == 1)
    images = build.Images(labels, None, 6, lambda rows: FEATURES[rows])
    with pytest.raises(UserError) as error:
        build.build_experiment(chosen, images)
    assert line in str(error.value)
    assert "--mode=search" in str(error.value)
