"""The published format of a distilled dataset and the client that reads it."""
