"""How far the edge proxy's logs are in the trail of downloads."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "edge_logs",
        sa.Column("file", sa.String(64), primary_key=True),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
    )
