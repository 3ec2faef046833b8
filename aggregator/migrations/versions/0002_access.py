"""Tokens, accepted agreements, and the trail of downloads, which is only added to."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

KEPT = "the trail of access is only added to"
TRAIL = ("acceptances", "downloads")


def upgrade() -> None:
    """Makes the tables and guards the trail."""
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("principal", sa.String(64), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("datasets", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("expires_at", sa.String(32), nullable=False),
        sa.Column("revoked_at", sa.String(32)),
    )
    op.create_table(
        "acceptances",
        sa.Column("principal", sa.String(64), primary_key=True),
        sa.Column("dataset_id", sa.Integer(), sa.ForeignKey("datasets.id"), primary_key=True),
        sa.Column("agreement_version", sa.Integer(), primary_key=True),
        sa.Column("token_id", sa.String(16), nullable=False),
        sa.Column("accepted_at", sa.String(32), nullable=False),
    )
    op.create_table(
        "downloads",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("principal", sa.String(64)),
        sa.Column("token_id", sa.String(16)),
        sa.Column("dataset", sa.String(127), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(128), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        for table in TRAIL:
            for change in ("UPDATE", "DELETE"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{change.lower()} "
                    f"BEFORE {change} ON {table} BEGIN SELECT RAISE(ABORT, '{KEPT}'); END"
                )
        return
    op.execute(
        "CREATE FUNCTION fedstill_only_added_to() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"RAISE EXCEPTION '{KEPT}' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    for table in TRAIL:
        op.execute(
            f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION fedstill_only_added_to()"
        )
