"""The offline demo: labelled tasks mined from the documentation of installed packages, and one honest comparison on them."""
