"""Every choice that a config offers becomes a step; what does not go together is refused in one line."""

import jax
import numpy as np
import pytest

from configs import ukbench
from fgis import build, choices
from fgis.errors import UserError
from fgis.learning.train import init_states, train

LABELS = np.repeat(np.arange(12), 4) * 1000  # labels may be any integers
COARSE = LABELS // 3000
FEATURES = np.random.default_rng(0).random((48, 6), np.float32)


def built(coarse=COARSE, **overrides):
    config = ukbench.get_config()
    config.update_from_flattened_dict({
        "seeds": 1, "folds": 2, "head.residual.rank": 3, "sampler.pk.classes": 6, "sampler.frequency.classes": 6,
        **{key.replace("__", "."): value for key, value in overrides.items()},
    })  # fmt: skip
    choices.check(config)
    return build.build(config, LABELS, 6, lambda rows: FEATURES[rows], coarse)


@pytest.mark.parametrize("miner", [name for name in choices.TABLES["miner"] if name != "given"])
@pytest.mark.parametrize("loss", ["soft_margin", "margin"])
def test_every_miner_takes_losses_over_triplets(miner, loss):
    assert len(built(miner__name=miner, loss__name=loss).plans) == 3


@pytest.mark.parametrize("loss", choices.TABLES["loss"])
def test_every_loss_takes_the_whole_batch(loss):
    built(miner__name="batch_all", loss__name=loss)


@pytest.mark.parametrize("loss", choices.PAIR_LOSSES)
def test_losses_over_pairs_take_mined_ones_and_schedules(loss):
    built(miner__name="semi_hard", loss__name=loss)
    built(miner__name="schedule", miner__schedule__second="batch_all", loss__name=loss)


@pytest.mark.parametrize("sampler", choices.TABLES["sampler"])
def test_every_sampler(sampler):
    lists = sampler in choices.LISTS_TRIPLETS
    built(sampler__name=sampler, miner__name="given" if lists else "semi_hard")


@pytest.mark.parametrize("group", ["head", "reduction", "optimizer"])
def test_every_other_choice(group):
    for name in choices.TABLES[group]:
        built(**{f"{group}__name": name})


def test_every_argument_in_a_config_is_known_to_its_function():
    config = ukbench.get_config()
    for group, table in choices.TABLES.items():
        assert {name for name in config[group] if name != "name"} == set(table)
        for name in table:
            choices.choose(config, group, name=name)


def test_an_anchor_has_room_for_the_positives_of_batch_and_memory():
    config = ukbench.get_config()
    assert build._max_positives(config) == 3
    config.memory.size = 300  # the batch and up to three earlier ones of 128
    assert build._max_positives(config) == 15
    config.sampler.name = "uniform"
    assert build._max_positives(config) is None


def test_an_optimiser_moves_parameters_and_what_the_loss_learns_but_no_constants():
    experiment = built(
        miner__name="batch_all", loss__name="proxy_anchor", optimizer__name="adamw",
        optimizer__adamw__weight_decay=0.5, head__residual__whiten=0.1,
    )  # fmt: skip
    before = init_states(experiment.recipe, experiment.runs).params
    features = experiment.scoring.prepare(FEATURES)
    after = train(experiment.recipe, experiment.runs, features, LABELS, steps=3, record_every=3).params
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
    "sampler.name": ({"sampler__name": "published"}, "given"),
    "memory with given triplets": (
        {"sampler__name": "published", "miner__name": "given", "memory__size": 128}, "memory.size"
    ),
    "memory below a batch": ({"memory__size": 5}, "memory.size: 5 is less than a batch of 24"),
    "proxies and a miner": ({"loss__name": "proxy_anchor"}, "batch_all"),
    "pairs and all triplets": ({"loss__name": "sup_con", "miner__name": "all_semi_hard"}, "batch_all"),
    "schedule of nothing": ({"miner__name": "schedule", "miner__schedule__first": "semi_hart"}, "mean 'semi_hard'"),
    "schedule of schedules": ({"miner__name": "schedule", "miner__schedule__first": "schedule"}, "is no miner"),
    "fallback": ({"miner__name": "semi_hard", "miner__semi_hard__fallback": "none"}, "fallback: 'none'"),
    "negative memory": ({"memory__size": -1}, "memory.size: -1"),
    "opposites": (
        {"loss__name": "opposites", "miner__name": "batch_all", "loss__opposites__opposite_margin": 0.1},
        "opposite_margin",
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
