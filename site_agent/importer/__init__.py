"""The importer: brings images from the imaging network into a spool folder.

A process of its own. It reaches the archive and the spool, never the aggregator; the worker reads
the spool and reaches no network; the connector reaches the aggregator and no image.
"""
