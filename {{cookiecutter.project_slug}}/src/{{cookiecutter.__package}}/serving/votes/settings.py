"""The settings of a page with text models and votes."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from starlette.middleware import Middleware

from ..pages import settings as pages
from ..protocol import Model
from .blind import AnonymousModel, anonymous


def _check_url(url: str) -> str:
    scheme, _, place = url.partition("://")
    if scheme == "sqlite" and not place.startswith("//"):
        raise ValueError("an SQLite file needs its full path. Write sqlite:////srv/votes.sqlite")
    if scheme not in ("sqlite", "postgresql", "postgresql+psycopg"):
        raise ValueError(
            "only PostgreSQL and SQLite are supported. Write postgresql://user@host/name, or "
            "sqlite:////srv/votes.sqlite"
        )
    # Imported here so that settings without a URL do not load SQLAlchemy.
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError("it is not a valid URL. Write postgresql://user@host:5432/name") from None
    return url


class PageSettings(pages.PageSettings):
    """The arguments of an application whose page uses text models and collects votes."""

    database_url: Annotated[str, AfterValidator(_check_url)] | None = Field(
        default=None, repr=False
    )
    """Where to store votes: `postgresql://user@host/name`, with the password in the variable
    `PGPASSWORD`. By default, an SQLite file on this machine, under `XDG_DATA_HOME`."""
    blind: bool = False
    """Whether to hide the models' names until the vote, and shuffle the sides."""
    keep_texts: bool = True
    """Whether to store prompts and answers with a vote."""
    keep_days: float | None = Field(default=None, gt=0)
    """Delete a vote after this many days."""

    @property
    def database(self) -> str:
        if self.database_url is not None:
            return self.database_url
        package = __package__.partition(".")[0]
        home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
        return f"sqlite:///{Path(home).absolute() / package / 'votes.sqlite'}"

    def start_checks(self) -> list[Callable[[], object]]:
        # Imported here so that the settings alone do not load SQLAlchemy.
        from .store import check_database

        return [*super().start_checks(), partial(check_database, self.database)]

    def on_page(self, models: Sequence[Model]) -> Sequence[Model]:
        return anonymous(models) if self.blind else models

    def api_of(self, models: Sequence[Model]) -> Middleware:
        # API clients use the models' own names.
        return super().api_of(
            [each.model if isinstance(each, AnonymousModel) else each for each in models]
        )
