"""Stores votes in a database, and reports when it cannot. Imports neither Ray nor Gradio."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    create_engine,
    delete,
    event,
    insert,
    make_url,
    text,
)
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from ..base import StartError
from ..telemetry.logs import logger, where
from .ballots import Ballot
from .tables import ANSWERS, ROUNDS, VOTES

SECONDS = 5
"""How long a connection to the database, and one statement, may take."""

PURGE_SECONDS = 3600
UPGRADE_LOCK = 7_305_804_402
"""An arbitrary id for the PostgreSQL lock that lets one process at a time create the tables."""

_upgrading = threading.Lock()


class LostError(RuntimeError):
    """The database does not respond, or not as it should. The log has the reason."""


class RepeatedError(ValueError):
    """There is already a vote on these answers."""


class Store:
    """The votes in the database at a URL. Connects when the first vote arrives.

    Args:
        keep_texts: whether to store prompts and answers.
    """

    def __init__(self, url: str, *, keep_texts: bool = True) -> None:
        self._engine = engine_of(make_url(url))
        self._keep_texts = keep_texts
        self._ready = False

    def keep(self, ballot: Ballot, *, again: bool = False) -> None:
        """Stores a vote with its answers, in one transaction.

        Args:
            again: replace the vote if an earlier attempt with an unknown outcome stored it.

        Raises:
            RepeatedError: there is already a vote on these answers.
            LostError: the outcome is unknown.
        """
        with _reported():
            try:
                self._insert(ballot, again)
            except OperationalError:
                # The connection may be from before a restart of the database.
                self._insert(ballot, again=True)

    def remove_older_than(self, days: float) -> None:
        oldest = datetime.now(UTC) - timedelta(days=days)
        with _reported(), self.changes() as connection:
            connection.execute(delete(ROUNDS).where(ROUNDS.c.time < oldest))

    def remove_periodically(self, days: float) -> None:
        """Removes old votes every hour, until the process ends."""

        def remove() -> None:
            while True:
                try:
                    self.remove_older_than(days)
                except LostError:
                    logger.warning("Old votes could not be deleted. Trying again in an hour.")
                time.sleep(PURGE_SECONDS)

        threading.Thread(target=remove, name="old votes", daemon=True).start()

    @contextmanager
    def changes(self) -> Iterator[Connection]:
        """Opens a transaction that writes."""
        self.prepare()
        with self._engine.begin() as connection:
            yield connection

    @contextmanager
    def reads(self) -> Iterator[Connection]:
        """Opens a transaction that reads and does not block votes."""
        self.prepare()
        with self._engine.connect().execution_options(reads=True) as connection:
            yield connection

    def prepare(self) -> None:
        """Creates the tables, or upgrades them to the version that the code expects."""
        if self._ready:
            return
        if self._engine.url.database and self._engine.dialect.name == "sqlite":
            Path(self._engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        # Imported here because a page needs it only after the first vote.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        with _upgrading, self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK}
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        self._ready = True

    def _insert(self, ballot: Ballot, again: bool) -> None:
        with self.changes() as connection:
            if again:
                connection.execute(delete(ROUNDS).where(ROUNDS.c.id == ballot.id))
            connection.execute(insert(ROUNDS), self._round(ballot))
            connection.execute(insert(ANSWERS), self._answers(ballot))
            connection.execute(
                insert(VOTES),
                [
                    {
                        "round_id": ballot.id,
                        "number": number,
                        "left_position": vote.left,
                        "right_position": vote.right,
                        "vote": vote.vote,
                    }
                    for number, vote in enumerate(ballot.votes)
                ],
            )

    def _round(self, ballot: Ballot) -> dict[str, Any]:
        return {
            "id": ballot.id,
            "time": ballot.time,
            "username": ballot.username,
            "blind": ballot.blind,
            "prompt": clean(ballot.prompt) if self._keep_texts else None,
        }

    def _answers(self, ballot: Ballot) -> list[dict[str, Any]]:
        return [
            {
                **asdict(reply),
                "round_id": ballot.id,
                "position": position,
                "conversation": clean(list(reply.conversation)) if self._keep_texts else None,
                "text": clean(reply.text) if self._keep_texts else None,
            }
            for position, reply in enumerate(ballot.replies)
        ]


def clean(value: Any) -> Any:
    """Replaces characters that PostgreSQL cannot store."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode(errors="replace").decode()
    if isinstance(value, dict):
        return {name: clean(each) for name, each in value.items()}
    return [clean(each) for each in value]


def engine_of(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": SECONDS})
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_in_sqlite)
        return engine
    milliseconds = SECONDS * 1000
    given = {
        "connect_timeout": SECONDS,
        "tcp_user_timeout": milliseconds,
        "options": f"-c statement_timeout={milliseconds}",
    }
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        pool_timeout=SECONDS,
        # Values in the URL take precedence.
        connect_args={name: value for name, value in given.items() if name not in url.query},
    )


def _set_up_sqlite(connection: Any, _: object) -> None:
    # Otherwise Python starts transactions itself, but none for changes to tables.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA journal_mode=WAL")


def _begin_in_sqlite(connection: Connection) -> None:
    reads = connection.get_execution_options().get("reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise RepeatedError from error
    except (SQLAlchemyError, OSError) as error:
        logger.error("The vote database failed: %s", reason_of(error))
        raise LostError from error


def reason_of(error: Exception) -> str:
    """Returns why a database failed, without any of the data that it was given."""
    if isinstance(error, OperationalError):
        return " ".join(str(error.orig).split())
    return error.strerror or where(error) if isinstance(error, OSError) else where(error)


def check_database(url: str) -> None:
    """Checks that votes can be stored. Prints a warning if a database server does not respond.

    Raises:
        StartError: the SQLite file cannot be written, and waiting would not help.
    """
    store = Store(url)
    try:
        store.prepare()
    except (SQLAlchemyError, OSError) as error:
        address = make_url(url)
        if address.get_backend_name() == "sqlite":
            raise StartError(
                f"votes cannot be stored in {address.database}: {reason_of(error)}. Set "
                "database_url under args: to a database, or set XDG_DATA_HOME to a writable "
                "directory."
            ) from error
        print(
            f"The vote database is not responding, and votes are lost until it does: "
            f"{reason_of(error)}",
            file=sys.stderr,
            flush=True,
        )
