"""`python -m PACKAGE votes`: prints the ratings, and exports the votes to a file."""

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import StartError

if TYPE_CHECKING:
    from .rating import Count
    from .store import Store

ROWS = 1000


def offer(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command to the command line."""
    votes = commands.add_parser("votes", help="prints the ratings, and exports the votes")
    votes.add_argument(
        "config",
        nargs="?",
        type=Path,
        default=Path("config/local.yaml"),
        help="the Serve config with the database_url to read (default: config/local.yaml)",
    )
    for name, kind in (("--csv", "CSV"), ("--parquet", "Parquet")):
        votes.add_argument(name, type=Path, metavar="FILE", help=f"also writes the votes as {kind}")
    votes.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Prints the table, and writes the requested files.

    Raises:
        StartError: the config has no page with votes, or the database does not answer.
    """
    # Imported here because parsing the command line needs neither a database nor Gradio.
    from sqlalchemy.exc import SQLAlchemyError

    from ..config import environment, plan, read_config
    from .rating import table
    from .settings import PageSettings
    from .store import LostError, Store, reason_of

    path: Path = arguments.config
    for planned in plan(read_config(path), path, alone=True):
        settings = planned.settings
        if not isinstance(settings, PageSettings):
            continue
        with environment(planned.config.runtime_env.get("env_vars", {})):
            store = Store(settings.database)
            try:
                if settings.keep_days is not None:
                    store.remove_older_than(settings.keep_days)
                print(table(counts_of(store)))
                export(store, arguments.csv, arguments.parquet)
            except LostError as error:
                raise StartError(
                    "the vote database is not responding. See the error above."
                ) from error
            except SQLAlchemyError as error:
                raise StartError(
                    f"the vote database is not responding: {reason_of(error)}. Start it, or "
                    "correct database_url."
                ) from error
            except OSError as error:
                raise StartError(f"{error.filename}: {error.strerror}.") from error
        return
    raise StartError(f"{path}: no application in it has votes. Use another config.")


def counts_of(store: "Store") -> "list[Count]":
    from sqlalchemy import func, select

    from .rating import Count
    from .tables import VOTES, beside

    left, right, joined = beside()
    which = (left.c.model, right.c.model, VOTES.c.vote)
    counted = select(*which, func.count()).select_from(joined).group_by(*which).order_by(*which)
    with store.reads() as connection:
        return [Count(*row) for row in connection.execute(counted)]


def export(store: "Store", csv: Path | None, parquet: Path | None) -> None:
    """Writes a row for each vote, a thousand at a time, so that any number fits in memory."""
    if csv is None and parquet is None:
        return
    import pyarrow as pa
    from pyarrow.csv import CSVWriter
    from pyarrow.parquet import ParquetWriter

    side = {
        "model": pa.string(),
        "options": pa.string(),
        "conversation": pa.string(),
        "text": pa.string(),
        "tokens": pa.int64(),
        "seconds": pa.float64(),
    }
    schema = pa.schema(
        {
            "round": pa.string(),
            "time": pa.timestamp("us", tz="UTC"),
            "username": pa.string(),
            "blind": pa.bool_(),
            "prompt": pa.string(),
            "vote": pa.string(),
            **{
                f"{where}_{name}": kind
                for where in ("left", "right")
                for name, kind in side.items()
            },
        }
    )
    with ExitStack() as files:
        writers = [
            files.enter_context(writer(path, schema))
            for writer, path in ((CSVWriter, csv), (ParquetWriter, parquet))
            if path is not None
        ]
        for rows in _rows(store, list(side)):
            table = pa.Table.from_pylist(rows, schema)
            for writer in writers:
                writer.write_table(table)


def _rows(store: "Store", side: list[str]) -> Iterator[list[dict[str, Any]]]:
    from sqlalchemy import select

    from .tables import ROUNDS, VOTES, beside

    left, right, joined = beside()
    every = (
        select(
            ROUNDS.c.id.label("round"),
            *(ROUNDS.c[name] for name in ("time", "username", "blind", "prompt")),
            VOTES.c.vote,
            *(
                answer.c[name].label(f"{where}_{name}")
                for where, answer in (("left", left), ("right", right))
                for name in side
            ),
        )
        .select_from(joined.join(ROUNDS, ROUNDS.c.id == VOTES.c.round_id))
        .order_by(ROUNDS.c.time, ROUNDS.c.id, VOTES.c.number)
    )
    with store.reads() as connection:
        found = connection.execution_options(yield_per=ROWS).execute(every)
        for rows in found.mappings().partitions():
            yield [{name: _in_a_cell(value) for name, value in row.items()} for row in rows]


def _in_a_cell(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
