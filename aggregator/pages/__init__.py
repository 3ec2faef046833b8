"""The catalogue for people: HTML beside the API, of the same datasets by the same functions.

Rendered on the server, readable without scripts, and with nothing from another host.
"""
