"""EfficientNet-Lite0 on a CPU: ours against ONNX Runtime and torch (channels last) on the same weights and threads.

``python -m experiments.benchmarks.networks [--weights=imagenet]``, about a minute on two cores; the peers are in the
extra ``oracles``. Images of 224 x 224 are in memory, so nothing is decoded; features are average-pooled. Peers get
kernels with batch normalisation folded in, as ours has them, and run the number of images at a time that suits them
best. All sides first compute the same features. Bar: ratio 1.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import timing
from fgis.features.backbones import BACKBONES, load_backbone
from fgis.features.backbones.efficientnet_lite import STAGES, EfficientNetLite, network_layers
from fgis.features.description import Settings, load_extractor

NAME, SIZE, BATCH = "efficientnet_lite0", (224, 224), 32
TOGETHER = (1, 4, 32)  # images that a peer may run at a time
Layers = dict[str, dict[str, np.ndarray]]


def images() -> np.ndarray:
    """Return [32, 224, 224, 3] uint8."""
    return np.random.default_rng(0).integers(0, 256, (BATCH, *SIZE, 3)).astype(np.uint8)


def folded_layers(weights: str) -> Layers:
    """Return the kernels (out, in, rows, columns) and biases that ours runs on, by layer."""
    _, params, _ = load_backbone(NAME, weights)
    tree = jax.tree.structure(network_layers(EfficientNetLite(**BACKBONES[NAME].options)))
    layers = jax.tree.unflatten(tree, params)
    return {
        name: {"kernel": layer["kernel"].transpose(3, 2, 0, 1).copy(), "bias": layer["bias"]}
        for name, layer in layers.items()
    }


def build(layers: Layers, x: Any, convolve: Callable[..., Any], relu6: Callable[[Any], Any], add: Callable) -> Any:
    """The network on the operations of a peer: ``convolve(x, layer's name, stride, groups)``."""

    def layer(x: Any, name: str, stride: int = 1, depthwise: bool = False) -> Any:
        groups = len(layers[name]["bias"]) if depthwise else 1
        return convolve(x, name, stride, groups)

    x, number = relu6(layer(x, "_conv_stem", 2)), 0
    for repeats, _, first_stride, expansion, _ in STAGES:
        for repeat in range(repeats):
            name, y = f"_blocks.{number}.", x
            if expansion > 1:
                y = relu6(layer(y, f"{name}_expand_conv"))
            stride = 1 if repeat else first_stride
            y = relu6(layer(y, f"{name}_depthwise_conv", stride, depthwise=True))
            y = layer(y, f"{name}_project_conv")
            x, number = add(x, y) if repeat else y, number + 1
    return relu6(layer(x, "_conv_head"))


def make_ours(weights: str, count: int) -> Callable[[], np.ndarray]:
    """Return ``count`` batches as ``extract`` runs them; the features of the last."""
    extractor, batch = load_extractor(Settings(NAME, SIZE, weights)), images()

    def run() -> np.ndarray:
        return [np.asarray(extractor.run((batch,))) for _ in range(count)][-1]

    return run


def make_torch(weights: str, count: int, together: int) -> Callable[[], np.ndarray]:
    """Return the same by torch, in channels-last format, ``together`` images at a time."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    batch = images()
    layers: Any = {
        name: {
            "kernel": torch.from_numpy(layer["kernel"]).contiguous(memory_format=torch.channels_last),
            "bias": torch.from_numpy(layer["bias"]),
        }
        for name, layer in folded_layers(weights).items()
    }

    def convolve(x: Any, name: str, stride: int, groups: int) -> Any:
        kernel, bias = layers[name]["kernel"], layers[name]["bias"]
        size = kernel.shape[-1]
        if stride == 1:
            return torch.nn.functional.conv2d(x, kernel, bias, padding=size // 2, groups=groups)
        missing = size - 2  # of even sides, to ceil(side / 2)
        x = torch.nn.functional.pad(x, (missing // 2, missing - missing // 2) * 2)
        return torch.nn.functional.conv2d(x, kernel, bias, stride=2, groups=groups)

    def run() -> np.ndarray:
        features: list[np.ndarray] = []
        with torch.inference_mode():
            for _ in range(count):
                features = []
                for start in range(0, BATCH, together):
                    x = torch.from_numpy(batch[start : start + together]).permute(0, 3, 1, 2).float()
                    x = (x - 127) / 128
                    y = build(layers, x, convolve, lambda x: x.clamp_(0, 6), lambda x, y: y.add_(x))
                    features.append(y.mean((2, 3)).numpy())
        return np.concatenate(features)

    return run


def make_onnx(weights: str, count: int, together: int) -> Callable[[], np.ndarray]:
    """Return the same by ONNX Runtime, ``together`` images at a time."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants = [
        numpy_helper.from_array(np.asarray(value, np.float32), name)
        for name, value in (("127", 127), ("128", 128), ("0", 0), ("6", 6))
    ]
    layers: Any = folded_layers(weights)
    for name, layer in layers.items():
        for part in ("kernel", "bias"):
            constants.append(numpy_helper.from_array(layer[part], f"{name}.{part}"))

    def node(kind: str, inputs: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"out{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def convolve(x: str, name: str, stride: int, groups: int) -> str:
        inputs = [x, f"{name}.kernel", f"{name}.bias"]
        return node("Conv", inputs, strides=[stride, stride], group=groups, auto_pad="SAME_UPPER")

    x = node("Transpose", [node("Cast", ["images"], to=TensorProto.FLOAT)], perm=[0, 3, 1, 2])
    x = node("Div", [node("Sub", [x, "127"]), "128"])
    y = build(layers, x, convolve, lambda x: node("Clip", [x, "0", "6"]), lambda x, y: node("Add", [x, y]))
    y = node("Flatten", [node("GlobalAveragePool", [y])])
    given = helper.make_tensor_value_info("images", TensorProto.UINT8, [together, *SIZE, 3])
    graph = helper.make_graph(
        nodes, NAME, [given], [helper.make_tensor_value_info(y, TensorProto.FLOAT, [together, 1280])], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batch = images()

    def run() -> np.ndarray:
        features = []
        for _ in range(count):
            starts = range(0, BATCH, together)
            features = [session.run(None, {"images": batch[start : start + together]})[0] for start in starts]
        return np.concatenate(features)

    return run


PEERS: tuple[tuple[str, timing.Make], ...] = (("ONNX Runtime", make_onnx), ("torch, channels last", make_torch))


def check(weights: str) -> None:
    """Refuse to compare sides that do not compute the same.

    Raises:
      SystemExit: features of a peer differ by more than 1e-3.
    """
    ours = timing.apart(features_of, make_ours, weights, 1)
    for name, make in PEERS:
        difference = float(np.max(np.abs(timing.apart(features_of, make, weights, 1, 1) - ours)))
        print(f"{name}: features differ by at most {difference:.1e}, values reach {ours.max():.1f}")
        if not difference < 1e-3:
            raise SystemExit(f"{name}: features differ")


def features_of(make: timing.Make, *arguments: Any) -> np.ndarray:
    """Return the features that one side computes."""
    return make(*arguments)()


def main() -> None:
    """Check that all sides compute the same, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="none", help="imagenet, a weights file, or none")
    parser.add_argument("--batches", type=int, default=2, help="batches of 32 in one turn")
    options = parser.parse_args()
    check(options.weights)
    arguments, rows = (options.weights, options.batches), []
    for name, make in PEERS:
        sides: list[tuple[timing.Make, tuple]] = [(make_ours, arguments)]
        sides += [(make, (*arguments, together)) for together in TOGETHER]
        ours, *peers = timing.interleave(sides, repeats=7)
        best = min(peers, key=lambda measured: measured.seconds)
        together = TOGETHER[peers.index(best)]
        rate = round(options.batches * BATCH / ours.seconds, 1)
        case = f"{NAME}, {name.split(',')[0]}"
        rows.append(timing.row(case, ours, f"{name}, {together} at a time", best, ours_images_per_s=rate))
    timing.report("networks", rows)


if __name__ == "__main__":
    main()
