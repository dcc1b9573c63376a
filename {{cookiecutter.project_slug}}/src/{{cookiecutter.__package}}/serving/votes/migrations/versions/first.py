"""The tables of votes on answers."""

import sqlalchemy as sa
from alembic import op

revision = "first"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "rounds",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("username", sa.Text),
        sa.Column("blind", sa.Boolean, nullable=False),
        sa.Column("prompt", sa.Text),
    )
    op.create_index("ix_rounds_time", "rounds", ["time"])
    op.create_table(
        "answers",
        sa.Column("round_id", sa.String(32), sa.ForeignKey("rounds.id", ondelete="CASCADE")),
        sa.Column("position", sa.Integer),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("conversation", sa.JSON),
        sa.Column("text", sa.Text),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("round_id", "position"),
    )
    answer = ["answers.round_id", "answers.position"]
    op.create_table(
        "votes",
        sa.Column("round_id", sa.String(32), sa.ForeignKey("rounds.id", ondelete="CASCADE")),
        sa.Column("number", sa.Integer),
        sa.Column("left_position", sa.Integer, nullable=False),
        sa.Column("right_position", sa.Integer),
        sa.Column("vote", sa.String(8), nullable=False),
        sa.PrimaryKeyConstraint("round_id", "number"),
        sa.ForeignKeyConstraint(["round_id", "left_position"], answer),
        sa.ForeignKeyConstraint(["round_id", "right_position"], answer),
    )


def downgrade() -> None:
    for name in ("votes", "answers", "rounds"):
        op.drop_table(name)
