"""The offline demo: tasks mined from the documentation of what is installed beside us, and one whole run on them."""
