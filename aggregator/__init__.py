"""What runs at the coordinator: distiller, Flower server app, releases and their HTTP API."""
