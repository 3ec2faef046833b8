"""Datasets, versions, files and withdrawals; what was published can never be changed.

Before this step the catalog was a SQLite file without steps: of such a one the tables are kept.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NEVER = "a published version never changes"
KEPT = "a dataset keeps its name, and its numbers only grow"
GROWING = ("last_number", "head_sequence", "agreement_version")
FALLS = " OR ".join(
    ["NEW.namespace <> OLD.namespace", "NEW.name <> OLD.name"]
    + [f"NEW.{column} < OLD.{column}" for column in GROWING]
)


def upgrade() -> None:
    """Makes the tables, or adds what is new to those that are there, and guards them."""
    if not sa.inspect(op.get_bind()).has_table("datasets"):
        _first_tables()
    # As text: Alembic would add the CHECK apart, which SQLite cannot do.
    op.execute(
        "ALTER TABLE datasets ADD COLUMN visibility VARCHAR(16) DEFAULT 'public' NOT NULL"
        " CHECK (visibility IN ('public', 'gated', 'private'))"
    )
    for column in (
        sa.Column("agreement_version", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("agreement_text", sa.Text(), nullable=False, server_default=""),
        sa.Column("head_sequence", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("newest_number", sa.Integer()),
    ):
        op.add_column("datasets", column)
    op.execute(
        "UPDATE datasets SET newest_number = last_number, head_sequence = last_number"
        " WHERE last_number > 0"
    )
    op.create_table(
        "withdrawals",
        sa.Column("version_id", sa.Integer(), sa.ForeignKey("versions.id"), primary_key=True),
        sa.Column("withdrawn_at", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgresql()


def _first_tables() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("namespace", sa.String(63), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("last_number", sa.Integer(), nullable=False),
        sa.UniqueConstraint("namespace", "name"),
    )
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("dataset_id", sa.Integer(), sa.ForeignKey("datasets.id"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("summary", sa.JSON(), nullable=False),
        sa.UniqueConstraint("dataset_id", "number"),
        sa.UniqueConstraint("dataset_id", "digest"),
    )
    op.create_table(
        "files",
        sa.Column("version_id", sa.Integer(), sa.ForeignKey("versions.id"), primary_key=True),
        sa.Column("path", sa.String(128), primary_key=True),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
    )


def _guard_sqlite() -> None:
    for table in ("versions", "files", "withdrawals"):
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER IF NOT EXISTS {table}_no_{change.lower()} "
                f"BEFORE {change} ON {table} BEGIN SELECT RAISE(ABORT, '{NEVER}'); END"
            )
    op.execute(
        "CREATE TRIGGER datasets_no_delete BEFORE DELETE ON datasets "
        f"BEGIN SELECT RAISE(ABORT, '{KEPT}'); END"
    )
    op.execute(
        f"CREATE TRIGGER datasets_grow BEFORE UPDATE ON datasets WHEN {FALLS} "
        f"BEGIN SELECT RAISE(ABORT, '{KEPT}'); END"
    )


def _guard_postgresql() -> None:
    for name, message in (("never_changes", NEVER), ("only_grows", KEPT)):
        op.execute(
            f"CREATE FUNCTION fedstill_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"RAISE EXCEPTION '{message}' USING ERRCODE = 'integrity_constraint_violation'; "
            "END $$"
        )
    for table in ("versions", "files", "withdrawals"):
        op.execute(
            f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION fedstill_never_changes()"
        )
    op.execute(
        "CREATE TRIGGER datasets_no_delete BEFORE DELETE OR TRUNCATE ON datasets "
        "FOR EACH STATEMENT EXECUTE FUNCTION fedstill_only_grows()"
    )
    op.execute(
        f"CREATE TRIGGER datasets_grow BEFORE UPDATE ON datasets FOR EACH ROW WHEN ({FALLS}) "
        "EXECUTE FUNCTION fedstill_only_grows()"
    )
