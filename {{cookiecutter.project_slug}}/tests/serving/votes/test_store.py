"""Votes in SQLite and in PostgreSQL."""

import socket
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import ValidationError
from sqlalchemy import select

from {{ cookiecutter.__package }}.serving.base import StartError
from {{ cookiecutter.__package }}.serving.votes import store as stores
from {{ cookiecutter.__package }}.serving.votes.ballots import (
    Ballot,
    Reply,
    Vote,
)
from {{ cookiecutter.__package }}.serving.votes.settings import PageSettings
from {{ cookiecutter.__package }}.serving.votes.store import (
    LostError,
    RepeatedError,
    Store,
    check_database,
)
from {{ cookiecutter.__package }}.serving.votes.tables import (
    ANSWERS,
    METADATA,
    ROUNDS,
    VOTES,
)

from ...support.databases import Database

EARLIER = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
LEFT = Reply("first", {"max_new_tokens": 9}, EARLIER, "Because.", 2, 0.5)
RIGHT = Reply("second", {"max_new_tokens": 9}, [], "Nobody knows.", 3, 1.25)


def ballot(*votes: Vote, replies: Sequence[Reply] = (LEFT, RIGHT), **changes: Any) -> Ballot:
    given = votes or (Vote(0, 1, "left"),)
    made = Ballot(uuid4().hex, datetime.now(UTC), "ada", True, "Why?", replies, given)
    return replace(made, **changes)


def rows(store: Store, table: Any) -> list[Any]:
    with store.reads() as connection:
        return [*connection.execute(select(table))]


def test_a_vote_is_stored_with_its_answers(database_url: str) -> None:
    store, kept = Store(database_url), ballot()
    store.keep(kept)
    [asked] = rows(store, ROUNDS)
    assert (asked.id, asked.username, asked.blind, asked.prompt) == (kept.id, "ada", True, "Why?")
    assert asked.time.replace(tzinfo=UTC) == kept.time
    left, right = sorted(rows(store, ANSWERS), key=lambda row: row.position)
    assert (left.model, left.text, left.tokens, left.seconds) == ("first", "Because.", 2, 0.5)
    assert (left.options, left.conversation) == ({"max_new_tokens": 9}, EARLIER)
    assert (right.model, right.text, right.conversation) == ("second", "Nobody knows.", [])
    assert rows(store, VOTES) == [(kept.id, 0, 0, 1, "left")]


def test_a_vote_can_be_stored_without_texts(database_url: str) -> None:
    store = Store(database_url, keep_texts=False)
    store.keep(ballot())
    [asked] = rows(store, ROUNDS)
    assert asked.prompt is None
    for answer in rows(store, ANSWERS):
        assert (answer.text, answer.conversation) == (None, None)
        assert answer.options == {"max_new_tokens": 9}
        assert answer.tokens > 0


def test_a_single_answer_has_no_right_side(database_url: str) -> None:
    store = Store(database_url)
    store.keep(ballot(Vote(0, None, "bad"), replies=[LEFT]))
    [vote] = rows(store, VOTES)
    assert vote[1:] == (0, 0, None, "bad")


def test_characters_that_a_database_cannot_store_are_replaced(database_url: str) -> None:
    store = Store(database_url)
    store.keep(ballot(replies=[replace(LEFT, text="a\0b\ud800c"), RIGHT]))
    assert [row.text for row in rows(store, ANSWERS) if row.position == 0] == ["a\ufffdb?c"]


def test_a_second_vote_on_the_same_answers_is_refused(database_url: str) -> None:
    store, kept = Store(database_url), ballot()
    store.keep(kept)
    with pytest.raises(RepeatedError):
        Store(database_url).keep(replace(kept, votes=[Vote(0, 1, "right")]))
    assert [row.vote for row in rows(store, VOTES)] == ["left"]


def test_a_vote_repeated_after_a_false_loss_report_is_stored_once(database_url: str) -> None:
    store, kept = Store(database_url), ballot()
    store.keep(kept)
    store.keep(replace(kept, votes=[Vote(0, 1, "right")]), again=True)
    assert [row.vote for row in rows(store, VOTES)] == ["right"]
    assert len(rows(store, ANSWERS)) == 2


def test_old_votes_are_deleted_with_their_answers(database_url: str) -> None:
    store, now = Store(database_url), datetime.now(UTC)
    old, new = (ballot(time=now - timedelta(days=days)) for days in (31, 29))
    store.keep(old)
    store.keep(new)
    store.remove_older_than(30)
    assert [row.id for row in rows(store, ROUNDS)] == [new.id]
    assert {row.round_id for row in (*rows(store, ANSWERS), *rows(store, VOTES))} == {new.id}


def test_the_migrations_create_the_tables_of_the_code(database_url: str) -> None:
    store = Store(database_url)
    with store.reads() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_replicas_that_start_together_create_the_tables_once(database_url: str) -> None:
    ready, failures = threading.Barrier(6), list[Exception]()

    def keep() -> None:
        store = Store(database_url)
        ready.wait()
        try:
            store.keep(ballot())
        except LostError as error:
            failures.append(error)

    threads = [threading.Thread(target=keep) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failures == []
    assert len(rows(Store(database_url), VOTES)) == 6


def test_a_vote_is_lost_while_the_database_is_down_and_stored_afterwards(
    postgresql: Database,
) -> None:
    store, kept = Store(postgresql.url), ballot()
    store.keep(ballot())
    postgresql.stop()
    with pytest.raises(LostError):
        store.keep(kept)
    postgresql.start()
    store.keep(kept, again=True)
    assert len(rows(store, VOTES)) == 2


def test_a_restart_of_the_database_loses_no_vote(postgresql: Database) -> None:
    store = Store(postgresql.url)
    store.keep(ballot())
    postgresql.stop()
    postgresql.start()
    store.keep(ballot())
    assert len(rows(store, VOTES)) == 2


def test_a_database_that_does_not_answer_times_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stores, "SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://ada:secret@127.0.0.1:{silent.getsockname()[1]}/votes"
        with pytest.raises(LostError):
            Store(url).keep(ballot())
    assert "secret" not in caplog.text


def test_an_unwritable_file_is_reported_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=r"votes cannot be stored in .*/file/votes\.sqlite: .*XDG"):
        check_database(f"sqlite:///{tmp_path}/file/votes.sqlite")


def test_an_unreachable_database_is_reported_but_does_not_prevent_the_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    check_database(f"postgresql://ada:secret@127.0.0.1:{port}/votes")
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert f"port {port}" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://ada@db/votes", "only PostgreSQL and SQLite"),
        ("votes.sqlite", "only PostgreSQL and SQLite"),
        ("sqlite://", "full path"),
        ("sqlite:///votes.sqlite", "full path"),
        ("postgresql://ada@db:port/votes", "not a valid URL"),
    ],
)
def test_an_invalid_database_url_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        PageSettings.model_validate(SETTINGS | {"database_url": url})


SETTINGS = {"title": "", "description": "", "models": [{"name": "tiny", "source": "tiny"}]}


def test_the_url_of_a_database_is_not_shown() -> None:
    url = "postgresql://ada:secret@db/votes"
    settings = PageSettings.model_validate(SETTINGS | {"database_url": url})
    assert settings.database == url
    assert "secret" not in repr(settings)


def test_without_a_url_votes_are_stored_in_the_user_data_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = PageSettings.model_validate(SETTINGS)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    Store(settings.database).keep(ballot())
    assert (tmp_path / "{{ cookiecutter.__package }}" / "votes.sqlite").is_file()
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    place = tmp_path / ".local/share/{{ cookiecutter.__package }}/votes.sqlite"
    assert settings.database == f"sqlite:///{place}"
