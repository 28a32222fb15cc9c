"""Heads whose backbone is trained as well: it sees a copy of the image in place of features that were stored.

A row holds the stored features of the network, a copy of the image that it is trained on, and whatever else the head
takes, as ``fgis.features.pixels`` joins them. The weights of the network are a collection of their own, "network", so
that they can move at another rate than the head.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fgis.learning.head import Head, Variables, fit_nothing
from fgis.learning.products import Precision

NETWORK = "network"  # the collection
AT_ONCE = 64  # images whose maps are in memory at the same time where nothing is trained


class Network(NamedTuple):
    """A pretrained network that can be differentiated."""

    # (params, images [b, side, side, 3] with values 0..255) -> features [b, f], prepared as the stored ones are
    apply: Callable[[Any, Float[Array, "b s s 3"]], Float[Array, "b f"]]
    params: Any  # to begin with
    side: int  # of the copies, in pixels


def with_network(head: Head, network: Network) -> Head:
    """A head on the features that a network computes, which is trained with it.

    Args:
      head: takes features, or features and copies of pixels.
      network: what computes the features.

    Returns:
      A head on rows of stored features [f], which it does not look at, the network's copy [3 · side²] with values from
      0 to 1, and what else ``head`` takes. A head that begins with a fit is fitted to what the network computes at the
      start. The network is computed in float32, whatever the precision of the head.
    """
    pixels = 3 * network.side**2
    picture = jax.ShapeDtypeStruct((1, network.side, network.side, 3), jnp.float32)
    size = jax.eval_shape(network.apply, network.params, picture).shape[-1]

    def see(params: Any, x: Float[Array, "b g"]) -> Float[Array, "b h"]:
        copies = 255 * x[:, size : size + pixels].reshape(-1, network.side, network.side, 3)
        return jnp.concatenate([network.apply(params, copies), x[:, size + pixels :]], axis=1)

    see_in_parts = jax.jit(lambda params, x: jax.lax.map(lambda row: see(params, row[None])[0], x, batch_size=AT_ONCE))

    def init(key: jax.Array, feature_shape: Sequence[int], start: Any = ()) -> Variables:
        start = dict(start)
        params = start.pop(NETWORK, network.params)
        return {**head.init(key, (feature_shape[0] - pixels,), start), NETWORK: params}

    def apply(
        variables: Variables, features: Array, dropout_keys: Array | None = None, *, precision: Precision = "float32"
    ) -> Array:
        own = {name: value for name, value in variables.items() if name != NETWORK}
        training = dropout_keys is not None
        seen = (see if training else see_in_parts)(variables[NETWORK], features)
        options = {} if precision == "float32" else {"precision": precision}
        embeddings: Array = head.apply(own, seen, dropout_keys, **options)
        return embeddings

    def fit(features: Float[np.ndarray, "m g"]) -> Variables:
        if head.fit is fit_nothing:
            return {NETWORK: network.params}
        parts = [features[i : i + AT_ONCE] for i in range(0, len(features), AT_ONCE)]
        seen = np.concatenate([np.asarray(see_in_parts(network.params, part)) for part in parts])
        return {**head.fit(seen), NETWORK: network.params}

    return Head(init, apply, fit)
