"""The contract of engines on a real Milvus server: ``python -m tests.gallery.milvus_server [arguments of pytest]``.

Needs Linux and ``pip install milvus==2.3.5``, a wheel that holds a standalone server. That listens on all interfaces,
so that it is started in a network namespace of its own, which has nothing but loopback; the tests run there too.
"""

import contextlib
import os
import subprocess
import sys
import tempfile

ADDRESS = "FGIS_MILVUS"  # the environment variable that names the server to the tests
INSIDE = "FGIS_MILVUS_NAMESPACE"


def main(arguments: list[str]) -> int:
    """Starts the server, runs the tests, stops it; returns the exit code of pytest."""
    if INSIDE not in os.environ:
        words = ["unshare", "--net", "--map-root-user", sys.executable, "-m", "tests.gallery.milvus_server", *arguments]
        return subprocess.run(words, env={**os.environ, INSIDE: "1"}).returncode
    from milvus import MilvusServer

    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        server = MilvusServer()
        server.set_base_dir(folder)
        server.start()
        try:
            environment = {**os.environ, ADDRESS: f"http://127.0.0.1:{server.listen_port}"}
            tests = ["tests/gallery/test_engines.py", "-k", "server", "-rs", *arguments]
            return subprocess.run([sys.executable, "-m", "pytest", *tests], env=environment).returncode
        finally:
            with contextlib.suppress(Exception):
                server.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
