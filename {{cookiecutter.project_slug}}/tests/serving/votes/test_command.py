"""`python -m {{ cookiecutter.__package }} votes`."""

import subprocess
import sys
from argparse import Namespace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml
from pyarrow import csv

from {{ cookiecutter.__package }}.serving.base import StartError
from {{ cookiecutter.__package }}.serving.votes.ballots import (
    Ballot,
    Reply,
    Vote,
)
from {{ cookiecutter.__package }}.serving.votes.command import export, run
from {{ cookiecutter.__package }}.serving.votes.store import Store

PACKAGE = "{{ cookiecutter.__package }}"


def ballot(number: int, *votes: Vote, days: float = 0, models: str = "ab") -> Ballot:
    replies = [Reply(name, {"max_new_tokens": 9}, [], f"I am {name}.", 4, 0.5) for name in models]
    time = datetime.now(UTC) - timedelta(days=days, seconds=-number)
    return Ballot(f"{number:032}", time, None, False, f'={number}, "why"?', replies, votes)


def config(folder: Path, **arguments: object) -> Path:
    path = folder / "config.yaml"
    application = {"name": "page", "import_path": f"{PACKAGE}.app:build", "args": arguments}
    path.write_text(yaml.safe_dump({"applications": [application]}), "utf-8")
    return path


def test_the_command_prints_the_table_from_the_database_in_the_config(
    database_url: str, tmp_path: Path
) -> None:
    store = Store(database_url)
    store.keep(ballot(1, Vote(0, 1, "left")))
    store.keep(ballot(2, Vote(0, None, "good"), models="a"))
    command = [sys.executable, "-m", PACKAGE, "votes"]
    printed = subprocess.run(
        [*command, str(config(tmp_path, database_url=database_url)), "--csv", "votes.csv"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    assert [line.split()[:2] for line in printed.splitlines()[1:3]] == [["a", "1"], ["b", "0"]]
    assert "good rate" in printed
    assert csv.read_csv(tmp_path / "votes.csv").num_rows == 2


def test_votes_older_than_the_config_allows_are_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/votes.sqlite"
    Store(url).keep(ballot(1, Vote(0, 1, "left"), days=8))
    path = config(tmp_path, database_url=url, keep_days=7)
    run(Namespace(config=path, csv=None, parquet=None))
    assert capsys.readouterr().out == "There are no votes yet.\n"


def test_an_export_has_a_row_for_each_vote(database_url: str, tmp_path: Path) -> None:
    store = Store(database_url)
    store.keep(ballot(1, Vote(2, 0, "left"), Vote(2, 1, "left"), models="abc"))
    store.keep(ballot(2, Vote(0, None, "bad"), models="a"))
    export(store, tmp_path / "votes.csv", tmp_path / "votes.parquet")
    rows = pyarrow.parquet.read_table(tmp_path / "votes.parquet").to_pylist()
    assert [(row["left_model"], row["right_model"], row["vote"]) for row in rows] == [
        ("c", "a", "left"),
        ("c", "b", "left"),
        ("a", None, "bad"),
    ]
    assert rows[0]["prompt"] == '=1, "why"?'
    assert rows[0]["left_options"] == '{"max_new_tokens": 9}'
    assert rows[0]["time"].tzinfo is not None
    written = csv.read_csv(tmp_path / "votes.csv").to_pylist()
    assert [row["prompt"] for row in written] == [row["prompt"] for row in rows]
    assert [row["left_text"] for row in written] == ["I am c.", "I am c.", "I am a."]


def test_an_empty_export_has_only_the_header(tmp_path: Path) -> None:
    export(Store(f"sqlite:///{tmp_path}/votes.sqlite"), tmp_path / "votes.csv", None)
    assert (tmp_path / "votes.csv").read_text().startswith('"round","time",')


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            {"database_url": "postgresql://ada:secret@127.0.0.1:1/votes"},
            "is not responding: .*port 1",
        ),
        ({"database_url": "mysql://db"}, "only PostgreSQL and SQLite"),
    ],
)
def test_errors_are_reported_in_one_line(
    arguments: dict[str, object], reason: str, tmp_path: Path
) -> None:
    path = config(tmp_path, **arguments)
    with pytest.raises(StartError, match=reason) as raised:
        run(Namespace(config=path, csv=None, parquet=None))
    assert len(str(raised.value).splitlines()) == 1
    assert "secret" not in str(raised.value)


def test_an_unwritable_file_is_reported(tmp_path: Path) -> None:
    path = config(tmp_path, database_url=f"sqlite:///{tmp_path}/votes.sqlite")
    with pytest.raises(StartError, match=r"nowhere/votes\.csv"):
        run(Namespace(config=path, csv=tmp_path / "nowhere" / "votes.csv", parquet=None))
