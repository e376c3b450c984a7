"Schedules and their firings."
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade():
    op.create_table("schedules",
        sa.Column("name", sa.String(64), primary_key=True), sa.Column("spec", sa.JSON), sa.Column("source", sa.Text), sa.Column("paused", sa.Boolean),
        sa.Column("next_due", sa.Float), sa.Column("wake", sa.Float, index=True),
        sa.Column("seen", sa.BigInteger), sa.Column("failing", sa.Float), sa.Column("changed", sa.Float))
    op.create_table("firings",
        sa.Column("id", sa.String(40), primary_key=True), sa.Column("schedule", sa.String(64)), sa.Column("key", sa.String(64)),
        sa.Column("due", sa.Float), sa.Column("at", sa.Float), sa.Column("state", sa.String(16), index=True), sa.Column("attempt", sa.Integer),
        sa.Column("spec", sa.JSON), sa.Column("parameters", sa.JSON), sa.Column("reason", sa.Text), sa.Column("run", sa.String(40)),
        sa.Column("owner", sa.Text), sa.Column("host", sa.Text), sa.Column("process", sa.Text), sa.Column("expires", sa.Float), sa.Column("beat", sa.Integer),
        sa.Column("gpus", sa.JSON), sa.Column("cancel", sa.Boolean), sa.Column("late_at", sa.Float), sa.Column("late", sa.Boolean),
        sa.Column("created", sa.Float), sa.Column("started", sa.Float), sa.Column("ended", sa.Float),
        sa.UniqueConstraint("schedule", "key"))
