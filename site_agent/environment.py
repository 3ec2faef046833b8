"""What the SuperNode hands to the ClientApp process through the environment."""

SITE_VARIABLE = "FEDSTILL_SITE"
"""The site's name."""
SOCKET_VARIABLE = "FEDSTILL_WORKER_SOCKET"
"""Path of the worker's Unix socket."""
CONTACT_VARIABLE = "FEDSTILL_CONTACT"
"""Path of the file that is touched when the aggregator answers."""
