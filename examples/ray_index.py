"""Index a folder of photos on a Ray cluster: one shard for each task, then all of them joined.

    pip install ray
    python examples/ray_index.py photos gallery 8

The folders have to be on a file system that all machines of the cluster share. A task that fails, or whose machine is
taken away, is tried again and continues where it stopped; so does the whole script.
"""

import subprocess
import sys

try:
    import ray
except ImportError:
    sys.exit("ray_index: ray is not installed; pip install ray")


def index(images: str, gallery: str, *more: str) -> str:
    """Run one command of fgis; return what it printed."""
    command = [sys.executable, "-m", "fgis.main", "--mode=index", f"--images={images}", f"--gallery={gallery}", *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


if __name__ == "__main__":
    images, gallery, shards = sys.argv[1], sys.argv[2], int(sys.argv[3])
    ray.init(log_to_driver=False)
    task = ray.remote(num_cpus=2, max_retries=3, retry_exceptions=True)(index)
    for printed in ray.get([task.remote(images, gallery, f"--shard={i}/{shards}") for i in range(1, shards + 1)]):
        print(printed.splitlines()[-1])
    print(index(images, gallery))
