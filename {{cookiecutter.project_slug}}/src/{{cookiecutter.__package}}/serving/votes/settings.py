"""What a page of text models takes where visitors vote."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from starlette.middleware import Middleware

from ..pages import settings as pages
from ..protocol import Model
from .blind import Hidden, hidden


def _check_url(url: str) -> str:
    scheme, _, place = url.partition("://")
    if scheme == "sqlite" and not place.startswith("//"):
        raise ValueError("an SQLite file is named with its whole path: sqlite:////srv/votes.sqlite")
    if scheme not in ("sqlite", "postgresql", "postgresql+psycopg"):
        raise ValueError("name a database of PostgreSQL, postgresql://user@host/name, or of SQLite")
    # Here, so that settings which name none load nothing of it.
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError("it is no address like postgresql://user@host:5432/name") from None
    return url


class PageSettings(pages.PageSettings):
    """The arguments of an application whose page asks text models, and for votes on them."""

    database_url: Annotated[str, AfterValidator(_check_url)] | None = Field(
        default=None, repr=False
    )
    """Where votes are kept: `postgresql://user@host/name`, with the password in the variable
    `PGPASSWORD`. Without one, in an SQLite file of this machine, below `XDG_DATA_HOME`."""
    blind: bool = False
    """Whether the page shows the models' names after the vote alone, and shuffles the sides."""
    keep_texts: bool = True
    """Whether prompts and answers are kept with a vote."""
    keep_days: float | None = Field(default=None, gt=0)
    """After so many days a vote is deleted."""

    @property
    def database(self) -> str:
        if self.database_url is not None:
            return self.database_url
        package = __package__.partition(".")[0]
        home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
        return f"sqlite:///{Path(home).absolute() / package / 'votes.sqlite'}"

    def start_checks(self) -> list[Callable[[], object]]:
        # Here, so that the settings alone load no database.
        from .store import check_database

        return [*super().start_checks(), partial(check_database, self.database)]

    def on_page(self, models: Sequence[Model]) -> Sequence[Model]:
        return hidden(models) if self.blind else models

    def api_of(self, models: Sequence[Model]) -> Middleware:
        # Programs ask for a model by its name.
        return super().api_of([each.model if isinstance(each, Hidden) else each for each in models])
