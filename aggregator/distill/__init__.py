"""The distiller: pure numerics, no files and no sockets."""
