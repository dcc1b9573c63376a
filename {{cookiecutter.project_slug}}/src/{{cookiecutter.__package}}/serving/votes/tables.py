"""The tables. To change them, add a file to `migrations/versions`."""

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    FromClause,
    Integer,
    Join,
    MetaData,
    String,
    Table,
    Text,
    and_,
)

METADATA = MetaData()

ROUNDS = Table(
    "rounds",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("time", DateTime(timezone=True), nullable=False, index=True),
    Column("username", Text),
    Column("blind", Boolean, nullable=False),
    Column("prompt", Text),
)
"""A prompt to all models, and the user who sent it."""

ANSWERS = Table(
    "answers",
    METADATA,
    Column("round_id", ForeignKey("rounds.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("model", Text, nullable=False),
    Column("options", JSON, nullable=False),
    Column("conversation", JSON(none_as_null=True)),
    Column("text", Text),
    Column("tokens", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
)

VOTES = Table(
    "votes",
    METADATA,
    Column("round_id", ForeignKey("rounds.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("left_position", Integer, nullable=False),
    Column("right_position", Integer),
    Column("vote", String(8), nullable=False),
    ForeignKeyConstraint(["round_id", "left_position"], ["answers.round_id", "answers.position"]),
    ForeignKeyConstraint(["round_id", "right_position"], ["answers.round_id", "answers.position"]),
)
"""A row for each pair of answers, or one without a right side for a single answer."""


def beside() -> tuple[FromClause, FromClause, Join]:
    """Returns aliases for the left and right answers, and the join of each vote with them."""
    left, right = ANSWERS.alias("on_left"), ANSWERS.alias("on_right")
    joined = VOTES.join(left, _at(left, VOTES.c.left_position)).outerjoin(
        right, _at(right, VOTES.c.right_position)
    )
    return left, right, joined


def _at(answer: FromClause, position: Column[int]) -> ColumnElement[bool]:
    return and_(answer.c.round_id == VOTES.c.round_id, answer.c.position == position)
