"""One `etherply serve` process for a story: its own temporary data directory, its own secret, a free port."""

import os
import re
import select
import shutil
import subprocess
import tempfile
from urllib.parse import quote

SECRET = "a secret of the client tests, 32+ bytes long"
START_S = 10


def environment(secret):
    """Each flag of the server is an environment variable too, so that one set outside must not reach it."""
    kept = {name: value for name, value in os.environ.items() if name != "PORT" and not name.startswith("ETHERPLY_")}
    return kept | {"ETHERPLY_JWT_SECRET": secret}


class Server:
    """Used in a `with` block, at whose end neither a process nor a folder stays behind."""

    def __init__(self, binary):
        self.binary = binary
        self.port = 0
        self.process = None
        self.home = tempfile.mkdtemp(prefix="etherply-clients-")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process:
            self.kill()
        shutil.rmtree(self.home)

    def start(self):
        """Ends when the server listens. The first start takes a free port; every later one takes the same again."""
        flags = ["--host", "127.0.0.1", "--port", str(self.port), "--data-dir", f"{self.home}/data", "--shards", "2"]
        with open(f"{self.home}/stderr", "ab") as stderr:
            self.process = subprocess.Popen(
                [self.binary, "serve", *flags],
                env=environment(SECRET),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        line = b""
        if select.select([self.process.stdout], [], [], START_S)[0]:
            line = self.process.stdout.readline()
        port = re.fullmatch(rb"listening on 127\.0\.0\.1:(\d+)\n", line)
        if not port:
            with open(f"{self.home}/stderr", encoding="utf-8") as stderr:
                said = stderr.read().strip()
            raise AssertionError(f"the first line is not 'listening on 127.0.0.1:PORT': {line}; stderr: {said}")
        self.port = int(port[1])

    def kill(self):
        """What a power cut leaves of a process: SIGKILL, no goodbye to anybody."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def token(self, secret=SECRET):
        command = [self.binary, "token", "--sub", "client-test"]
        return subprocess.run(command, env=environment(secret), check=True, capture_output=True, text=True).stdout.strip()

    def url(self, token):
        query = "" if token is None else f"?token={quote(token)}"
        return f"ws://127.0.0.1:{self.port}/v1/sync/workspace-123{query}"
