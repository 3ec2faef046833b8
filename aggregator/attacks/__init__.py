"""Attacks on what sites send and on what is released: measured, never assumed."""
