"The runs of a workspace: the run, the history of its states, the seconds of its cells."
import sqlalchemy as sa
from alembic import op

from scalai_nb.core.errors import BadRequest

revision, down_revision = "0001", None

BEFORE = dict(  # the tables and columns that were made before there were migrations
    runs="id name kind state notebook output parameters results error reason parent key created started seconds cell cells peak_memory reads writes host process versions commit cancel",
    events="run at state detail", timings="run cell seconds")


def upgrade():
    if set(BEFORE) & set(sa.inspect(op.get_bind()).get_table_names()): return adopt()
    op.create_table("runs",
        sa.Column("id", sa.String(40), primary_key=True), sa.Column("name", sa.Text, index=True), sa.Column("kind", sa.String(16)),
        sa.Column("state", sa.String(16), index=True), sa.Column("notebook", sa.Text), sa.Column("output", sa.Text),
        sa.Column("parameters", sa.JSON), sa.Column("results", sa.JSON), sa.Column("error", sa.JSON), sa.Column("reason", sa.Text),
        sa.Column("parent", sa.String(40), index=True), sa.Column("key", sa.String(64), index=True),
        sa.Column("created", sa.Float, index=True), sa.Column("started", sa.Float), sa.Column("seconds", sa.Float),
        sa.Column("cell", sa.Integer), sa.Column("cells", sa.Integer), sa.Column("peak_memory", sa.BigInteger),
        sa.Column("reads", sa.JSON), sa.Column("writes", sa.JSON), sa.Column("host", sa.Text), sa.Column("process", sa.Text),
        sa.Column("versions", sa.JSON), sa.Column("commit", sa.Text), sa.Column("cancel", sa.Boolean), sa.Column("beat", sa.Float))
    op.create_table("events",
        sa.Column("run", sa.String(40), index=True), sa.Column("n", sa.Integer), sa.Column("at", sa.Float), sa.Column("state", sa.String(16)), sa.Column("detail", sa.Text))
    op.create_table("timings", sa.Column("run", sa.String(40), index=True), sa.Column("cell", sa.Integer), sa.Column("seconds", sa.Float))


def adopt():
    "Take over what an earlier version made, where it is that and nothing else."
    look = sa.inspect(op.get_bind())
    for table, columns in BEFORE.items():
        found = {c["name"] for c in look.get_columns(table)} if look.has_table(table) else set()
        if wrong := found ^ set(columns.split()):
            raise BadRequest(f"The record's database has tables that are not a record's: {table} differs in {', '.join(sorted(wrong))}.", "Give [jobs] database a place of its own.")
    op.add_column("runs", sa.Column("beat", sa.Float))
    op.add_column("events", sa.Column("n", sa.Integer))
    op.execute("UPDATE events SET n = (SELECT count(*) FROM events AS e WHERE e.run = events.run AND e.at < events.at)")
