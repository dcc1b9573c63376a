"""A Redis for tests, with a password."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from .servers import free_port

PASSWORD = "of this test alone"  # noqa: S105
START_SECONDS = 60
MISSING = "Redis is missing. Install it, on Debian by `apt-get install redis-server`."


@dataclass
class OwnRedis:
    """A Redis on a free port that can be stopped."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.fail(MISSING)
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        options += ["--save", "", "--requirepass", PASSWORD]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([program, *options], stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        with Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except RedisConnectionError:
                    assert self.process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def own_redis() -> Iterator[OwnRedis]:
    with TemporaryDirectory(prefix="redis-") as folder:
        server = OwnRedis(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()
