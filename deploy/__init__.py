"""How fedstill is installed, supervised and shown."""
