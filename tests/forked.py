"""main.py in processes of their own that need not import everything again: forks of one that has."""

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]
# Every process compiles the same few programs.
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,  # of conftest.py
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
# For each request it forks a keeper, which forks main.py, tells its number, waits for it, and tells how it ended.
SERVER = """
import json, os, runpy, signal, socket, sys
import jax
from flatten_jax.training import agreement, loop, profile, setup

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
requests = socket.socket(fileno=int(sys.argv[1]))
while True:
    message, descriptors, _, _ = socket.recv_fds(requests, 1 << 16, 2)
    if not message:
        sys.exit()
    output, answers = descriptors
    if not os.fork():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        number = os.fork()
        if not number:
            break
        os.close(output)
        os.write(answers, b"%d\\n" % number)
        os.write(answers, b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))
        os._exit(0)
    os.close(output)
    os.close(answers)

requests.close()
os.close(answers)
for stream in (1, 2):
    os.dup2(output, stream)
os.close(output)
arguments, inherited, own = json.loads(message)
os.environ.clear()
os.environ.update(inherited, **own)
for name, value in own.items():
    if name.startswith("JAX_"):  # JAX has looked already
        jax.config.update(name.lower(), json.loads(value))
sys.argv[:] = ["main.py", *arguments]
runpy.run_path("main.py", run_name="__main__")
"""


@functools.cache
def _server():
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-u", "-c", SERVER, str(theirs.fileno())]
    environment, descriptors = os.environ | CACHE, [theirs.fileno()]
    subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=descriptors, stdin=subprocess.DEVNULL)
    theirs.close()  # it ends with this process
    return ours


class Main:
    """A process of main.py, with what tests ask of a `subprocess.Popen`; both its streams are in `stdout`.

    Args:
        arguments: of the command line.
        environment: what is added to that of this process.
    """

    def __init__(self, arguments, environment):
        self.args, self.returncode = arguments, None
        (printed, output), (told, answers) = os.pipe(), os.pipe()
        request = json.dumps([arguments, os.environ | CACHE, environment]).encode()
        socket.send_fds(_server(), [request], [output, answers])
        os.close(output)
        os.close(answers)
        self.stdout, self._told = os.fdopen(printed, encoding="utf-8"), os.fdopen(told, "rb", 0)
        self.pid = int(self._told.readline())

    def poll(self):
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.returncode = int(self._told.readline())
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None and not select.select([self._told], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.poll()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout=300):
        late = threading.Timer(timeout, self.send_signal, [signal.SIGKILL])
        late.start()
        with self.stdout:
            output = self.stdout.read()
        self.wait()
        late.cancel()
        return output, None
