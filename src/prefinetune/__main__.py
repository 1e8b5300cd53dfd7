"""`python -m prefinetune` is the same as `prefinetune`."""

from prefinetune.cli import main

if __name__ == "__main__":
    main()
