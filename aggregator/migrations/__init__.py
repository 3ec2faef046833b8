"""The database's schema, step by step, as Alembic reads it.

A step is a file ``versions/NNNN_name.py`` whose ``revision`` is ``NNNN``; the highest is what this
code needs, and `aggregator.database` brings a database there when it is opened. A step that was in
a release is never edited: what is wrong with it is mended by the next. SQLite's batch mode copies a
table and loses its triggers: of ``datasets``, ``versions``, ``files`` and ``withdrawals`` columns
are added by ``op.add_column`` alone.
"""
