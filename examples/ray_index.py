"""Index a folder of photos on a Ray cluster: Ray Data maps the shards, and what they described is joined.

    pip install 'ray[data]'
    python examples/ray_index.py photos gallery 8

The folders have to be on a file system that all machines of the cluster share. A shard that fails, or whose machine is
taken away, is tried again and continues where it stopped; so does the whole script.
"""

import subprocess
import sys

try:
    import ray
except ImportError:
    sys.exit("ray_index: ray is not installed; pip install 'ray[data]'")


def index(images: str, gallery: str, *more: str) -> str:
    """Run one command of fgis; return its last line."""
    command = [sys.executable, "-m", "fgis.main", "--mode=index", f"--images={images}", f"--gallery={gallery}", *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.splitlines()[-1]


if __name__ == "__main__":
    images, gallery, shards = sys.argv[1], sys.argv[2], int(sys.argv[3])
    ray.init(log_to_driver=False)
    work = ray.data.from_items([{"shard": f"{number}/{shards}"} for number in range(1, shards + 1)])
    work = work.repartition(shards).map(
        lambda row: {**row, "said": index(images, gallery, f"--shard={row['shard']}")}, num_cpus=2
    )
    for row in work.take_all():
        print(f"shard {row['shard']}: {row['said']}")
    print(index(images, gallery))
