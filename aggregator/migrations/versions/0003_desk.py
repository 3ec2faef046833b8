"""Sessions of the coordinator's desk, and the trail of what was done there, only added to."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

KEPT = "the trail of actions is only added to"


def upgrade() -> None:
    """Makes the tables and guards the trail."""
    op.create_table(
        "desk_sessions",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("token_id", sa.String(16), nullable=False),
        sa.Column("expires_at", sa.String(32), nullable=False),
    )
    op.create_table(
        "desk_actions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("principal", sa.String(64), nullable=False),
        sa.Column("token_id", sa.String(16), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("begun", sa.BigInteger(), index=True),
    )
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER desk_actions_no_{change.lower()} "
                f"BEFORE {change} ON desk_actions BEGIN SELECT RAISE(ABORT, '{KEPT}'); END"
            )
        return
    op.execute(
        "CREATE TRIGGER desk_actions_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON desk_actions "
        "FOR EACH STATEMENT EXECUTE FUNCTION fedstill_only_added_to()"
    )
