"""The blog's own loops, in Keras on JAX and scikit-learn, against fgis doing the same work.

``python -m experiments.benchmarks.published [--features=FILE] [--repeats=3]``, about five minutes on two cores.

Every repetition runs each side in a fresh process, ours and the peer in turns, from features in the memory of the host
to trained parameters (``train``) or to the score (``evaluate``). Imports, data and, for ``evaluate``, the trained
network are there before the clock starts; no compilation cache is used. A process works twice, on two seeds:

* ``train``, ``evaluate``: the first time, everything that has to be compiled included, on both sides;
* ``train_warm``, ``evaluate_warm``: the second time, with what each side keeps of the first. The peer keeps its model,
  optimiser and compiled functions (only their values are reset), ours its experiment.

``train``: 1000 triplets drawn as published, 250 of them held out; 10 epochs in batches of 32 under Adam; validation and
a checkpoint, optimiser included, after each. ``evaluate``: embed 1000 images, rank all of them for each, count hits in
the top 4. The published loop calls scikit-learn once per query; ``evaluate_matrix`` is that peer improved, one distance
matrix and one sort. ``*_spatial``: synthetic features [1000, 9, 9, 512], the shape that the blog fed; the peer averages
over space inside the network, as published, ours once before.

Before any time is printed, both sides must reach the same N-S score within the noise of the seeds.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks import timing

EPOCHS, BATCH, TRIPLETS, HELD_OUT = 10, 32, 1000, 0.25
PEER = "keras.Model.fit on JAX"
PEER_SEARCH = "keras predict, scikit-learn"
Run = Callable[[Any], Any]


def load(source: str) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 features and labels: of a feature file, or synthetic ones for ``spatial``."""
    if source != "spatial":
        from fgis.features.store import load_features

        found = load_features(source)
        return found.features.astype(np.float32), found.labels
    # Objects differ in which channels fire, views of an object in how strongly; positions by noise.
    generator = np.random.default_rng(0)
    labels = np.arange(1000) // 4
    objects = generator.exponential(size=(250, 512)) * (generator.random((250, 512)) < 0.3)
    views = objects[labels] * generator.random((1000, 512)) + 0.4 * generator.exponential(size=(1000, 512))
    noise = generator.random((1000, 9, 9, 512), np.float32)
    return views[:, None, None].astype(np.float32) * noise, labels


def open_experiment(features: np.ndarray, labels: np.ndarray) -> tuple[Any, Any, Any]:
    """(settings, scoring, experiment) of ``configs/ukbench.py:published``, for one closed-set run on these features."""
    from fgis.experiment import build
    from fgis.experiment.config import read_settings

    settings = read_settings(published_config())
    scoring = build.build_scoring(settings)
    prepared = lambda rows: scoring.prepare(features[rows])
    return settings, scoring, build.build_experiment(settings, build.Images(labels, None, features.shape[-1], prepared))


def published_config() -> dict[str, Any]:
    """The plain configuration of the published experiment, for one closed-set run."""
    from fgis.experiment.config_file import load_config
    from fgis.experiment.differences import to_plain

    return to_plain(load_config("ukbench:published")) | {"seeds": 1, "folds": 0}


def make_ours_train(source: str) -> Run:
    """``seed -> parameters`` by ``configs/ukbench.py:published``, for one closed-set run."""
    import jax
    import jax.numpy as jnp

    from fgis.learning import checkpoint
    from fgis.learning.pools import RunImages, draw_published_triplets
    from fgis.learning.train import TrainingData, train

    features, labels = load(source)
    config = published_config()
    experiments: list[tuple[Any, Any, Any]] = []  # kept by the second run, so that it need not compile again
    jax.devices()

    def run(seed: int) -> Any:
        if not experiments:
            experiments.append(open_experiment(features, labels))
        settings, scoring, experiment = experiments[0]
        triplets = settings.sampler.options["published"]["triplets"]
        drawn = draw_published_triplets(RunImages(labels, np.arange(len(labels))), seed, triplets=triplets)
        with (
            tempfile.TemporaryDirectory() as folder,
            checkpoint.open_checkpoints(folder) as manager,
        ):
            state = train(
                experiment.recipe,
                experiment.runs._replace(seeds=jnp.asarray([seed]), pools=jnp.asarray(drawn)[None]),
                TrainingData(jnp.asarray(scoring.prepare(features)), labels),
                steps=settings.train.total_steps,
                record_every=settings.train.record_every_steps,
                on_record=lambda step, state, metrics: checkpoint.save(
                    manager, state, config, loss=float(metrics["validation_loss"].mean())
                ),
            )
        return jax.tree.map(lambda x: np.asarray(x[0]), state.params)

    return run


def make_ours_evaluate(source: str) -> Run:
    """``parameters -> N-S score`` by ``fgis.retrieval.evaluate``."""
    import jax

    from fgis.experiment.build import build_scoring
    from fgis.experiment.config import read_settings
    from fgis.retrieval.evaluate import evaluate, protocol

    features, labels = load(source)
    scoring = build_scoring(read_settings(published_config()))
    jax.devices()

    def run(params: Any) -> float:
        embeddings = np.asarray(scoring.embed(params, scoring.prepare(features)))
        metrics = ("ns_score",)
        found = evaluate(embeddings, labels, protocol(labels, metrics), metrics, scoring.distance)
        return float(found["ns_score"].mean())

    return run


def draw_triplets(labels: np.ndarray, seed: int) -> np.ndarray:
    """Rows [t, 3] as published: two labels of the array; first and last image of the one, first image of the other."""
    generator = np.random.default_rng(seed)
    triplets = []
    for _ in range(TRIPLETS):
        positive, negative = generator.choice(labels, 2, replace=False)
        same = np.where(labels == positive)[0]
        other = np.where(labels == negative)[0]
        triplets.append((same[0], same[-1], other[0]))
    return np.array(triplets)


def keras_network(shape: tuple[int, ...]) -> Any:
    """The embedding network of the blog and of its author's code."""
    import keras
    from keras import layers

    pooling = [layers.GlobalAveragePooling2D()] if len(shape) == 3 else []
    return keras.Sequential(
        [
            keras.Input(shape),
            *pooling,
            layers.Dense(512, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(512, activation="relu"),
            layers.Dropout(0.25),
            layers.Dense(256, activation="relu"),
        ]
    )


def keras_triplet_model(network: Any, shape: tuple[int, ...]) -> Any:
    """Three inputs through one network; the loss is the hinge of the batch mean, and the targets are not looked at."""
    import keras
    from keras import ops

    def distance(a: Any, b: Any) -> Any:
        return ops.sqrt(ops.maximum(ops.sum(ops.square(a - b), axis=1), keras.backend.epsilon()))

    def loss(_: Any, embeddings: Any) -> Any:
        anchor, positive, negative = ops.split(embeddings, 3, axis=1)
        return ops.maximum(0.0, 1.0 + ops.mean(distance(anchor, positive) - distance(anchor, negative)))

    inputs = [keras.Input(shape) for _ in range(3)]
    model = keras.Model(inputs, keras.layers.Concatenate()([network(x) for x in inputs]))
    model.compile(optimizer=keras.optimizers.Adam(1e-4), loss=loss)
    return model


def make_peer_train(source: str) -> Run:
    """``seed -> weights`` by ``fit`` as its author would have called it; the second seed reuses the compiled model."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import keras

    features, labels = load(source)
    shape = features.shape[1:]
    built: list[Any] = []
    jax.devices()

    def run(seed: int) -> list[np.ndarray]:
        keras.utils.set_random_seed(seed)
        rows = draw_triplets(labels, seed)
        if not built:
            network = keras_network(shape)
            model = keras_triplet_model(network, shape)
            model.optimizer.build(model.trainable_variables)
            built.extend([network, model, [np.asarray(variable) for variable in model.optimizer.variables]])
        else:
            built[0].set_weights(keras_network(shape).get_weights())
            for variable, start in zip(built[1].optimizer.variables, built[2], strict=True):
                variable.assign(start)
        with tempfile.TemporaryDirectory() as folder:
            built[1].fit(
                [features[rows[:, i]] for i in range(3)],
                np.zeros(len(rows)),
                batch_size=BATCH,
                epochs=EPOCHS,
                validation_split=HELD_OUT,
                callbacks=[keras.callbacks.ModelCheckpoint(folder + "/{epoch:02d}.keras")],
                verbose=0,
            )
        return built[0].get_weights()

    return run


def make_peer_evaluate(source: str, matrix: bool = False) -> Run:
    """``weights -> N-S score`` by ``predict`` and the published loop, or with one distance matrix for all queries."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    from sklearn.metrics.pairwise import euclidean_distances

    features, labels = load(source)
    network = keras_network(features.shape[1:])
    jax.devices()

    def run(weights: list[np.ndarray]) -> float:
        network.set_weights(weights)
        embeddings = network.predict(features, verbose=0)
        if matrix:
            nearest = np.argsort(euclidean_distances(embeddings), axis=1)[:, :4]
            return float((labels[nearest] == labels[:, None]).sum(axis=1).mean())
        hits = 0
        for query in range(len(embeddings)):
            distances = euclidean_distances(embeddings[query : query + 1], embeddings)[0]
            hits += np.sum(labels[np.argsort(distances)[:4]] == labels[query])
        return float(hits / len(embeddings))

    return run


def best(found: list[timing.Fresh], turn: int) -> timing.Measured:
    """Return the fastest of the processes, cold (turn 0) or warm (1), and the smallest of their peaks."""
    return timing.Measured(min(one.seconds[turn] for one in found), min(one.megabytes for one in found))


def check_scores(shape: str, ours: list[float], peer: list[float]) -> None:
    """Print both scores over the seeds; stop where they differ by more than their noise."""
    difference = np.mean(ours) - np.mean(peer)
    noise = np.sqrt(np.var(ours, ddof=1) / len(ours) + np.var(peer, ddof=1) / len(peer))
    print(
        f"{shape}: N-S over {len(ours)} seeds: ours {np.mean(ours):.3f}, peer {np.mean(peer):.3f}, "
        f"difference {difference:+.3f} with a standard error of {noise:.3f}",
        flush=True,
    )
    if not abs(difference) <= 4 * noise + 0.005:
        raise SystemExit(f"{shape}: the scores differ by more than noise, so the two sides do not do the same work")


def measure(source: str, suffix: str, repeats: int) -> list[dict[str, Any]]:
    """Run all cases on one kind of features and check the scores; return the rows of the report."""
    makes = {
        "ours_train": (make_ours_train, (source,)),
        "peer_train": (make_peer_train, (source,)),
        "ours_evaluate": (make_ours_evaluate, (source,)),
        "peer_evaluate": (make_peer_evaluate, (source,)),
        "peer_matrix": (make_peer_evaluate, (source, True)),
    }
    found: dict[str, list[timing.Fresh]] = {name: [] for name in makes}
    for repeat in range(repeats):
        trained: dict[str, Any] = {}
        for name, (make, arguments) in makes.items():  # in turns: a busy machine hits both
            inputs = [2 * repeat, 2 * repeat + 1] if name.endswith("train") else trained[name[:4]]
            found[name].append(timing.run_fresh(make, arguments, inputs))
            if name.endswith("train"):
                trained[name[:4]] = found[name][-1].results
    scores = {
        name: [score for one in found[name] for score in one.results] for name in ("ours_evaluate", "peer_evaluate")
    }
    check_scores(f"features{suffix or '_pooled'}", *scores.values())
    rows = []
    for case, ours, peer, peer_name in (
        ("train", "ours_train", "peer_train", PEER),
        ("evaluate", "ours_evaluate", "peer_evaluate", PEER_SEARCH + " per query"),
        ("evaluate_matrix", "ours_evaluate", "peer_matrix", PEER_SEARCH + " at once"),
    ):
        for turn, state in enumerate(("", "_warm")):
            rows.append(timing.row(case + suffix + state, best(found[ours], turn), peer_name, best(found[peer], turn)))
    return rows


def main() -> None:
    """Measure all cases on both shapes of features and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", default="", help="a feature file; the bundled one without it")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes of each side; two seeds each")
    options = parser.parse_args()
    rows = measure(options.features, "", options.repeats) + measure("spatial", "_spatial", options.repeats)
    timing.report("published", rows)


if __name__ == "__main__":
    main()
