"""What a hospital's image files become: see ``folder``. Imports nothing: readers start with it."""
