"Files that schedules have seen."
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"


def upgrade():
    op.create_table("arrivals",
        sa.Column("schedule", sa.String(64), primary_key=True), sa.Column("path", sa.Text, primary_key=True), sa.Column("version", sa.Text),
        sa.Column("since", sa.Float), sa.Column("taken", sa.Boolean))
