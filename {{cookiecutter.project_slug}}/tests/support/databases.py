"""PostgreSQL for tests: the server at TEST_DATABASE_URL, or one started from Debian's package."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import psycopg
import pytest
from sqlalchemy import make_url

from .servers import free_port

USER = "postgres"
MISSING = (
    "PostgreSQL is missing. Install it, on Debian by `apt-get install postgresql`, or name a "
    "server in TEST_DATABASE_URL."
)


@dataclass(frozen=True)
class Server:
    """A server with a separate database for each test."""

    url: str
    stop: Callable[[str], None]
    """Ends all connections to a database, and refuses new ones."""
    start: Callable[[str], None]

    def command(self, *statements: str) -> None:
        plain = self.url.replace("postgresql+psycopg:", "postgresql:")
        with psycopg.connect(plain, autocommit=True) as connection:
            for each in statements:
                connection.execute(each.encode())


@contextmanager
def server() -> Iterator[Server]:
    named = os.environ.get("TEST_DATABASE_URL")
    if not named:
        with own_server() as own:
            yield own
        return

    def stop(name: str) -> None:
        found.command(
            f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",  # noqa: S608
        )

    found = Server(
        named, stop, lambda name: found.command(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    )
    yield found


@contextmanager
def own_server() -> Iterator[Server]:
    """Starts a server on a free port; root runs it as the user of Debian's package."""
    programs = [*Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")]
    found = shutil.which("pg_ctl") or max(programs, default=None)
    if found is None:
        pytest.fail(MISSING)
    user = USER if os.geteuid() == 0 else None
    folder, port = Path(tempfile.mkdtemp(prefix="postgresql-")), free_port()
    if user:
        shutil.chown(folder, user)

    def control(*arguments: str) -> None:
        # Log to a file, because the server would keep a pipe open.
        with (folder.parent / f"{folder.name}.log").open("a") as log:
            subprocess.run(
                [str(found), "-D", str(folder / "data"), "-w", "-t", "120", *arguments],
                check=True,
                user=user,
                cwd=folder,
                stdout=log,
                stderr=log,
            )

    def start(_: str = "") -> None:
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        control("-o", options, "start")

    def stop(_: str = "") -> None:
        control("-m", "immediate", "stop")

    try:
        control("-o", f"-A trust -U {USER}", "initdb")
        start()
        yield Server(f"postgresql://{USER}@127.0.0.1:{port}/postgres", stop, start)
        stop()
    finally:
        shutil.rmtree(folder)
        (folder.parent / f"{folder.name}.log").unlink()


@dataclass(frozen=True)
class Database:
    url: str
    stop: Callable[[], None]
    start: Callable[[], None]


@contextmanager
def database_on(server: Server) -> Iterator[Database]:
    """Yields an empty database, and drops it afterwards."""
    name = f"votes_{token_hex(6)}"
    server.command(f"CREATE DATABASE {name}")
    url = make_url(server.url).set(database=name)
    try:
        yield Database(
            url.render_as_string(hide_password=False),
            lambda: server.stop(name),
            lambda: server.start(name),
        )
    finally:
        server.command(f"DROP DATABASE {name} WITH (FORCE)")
