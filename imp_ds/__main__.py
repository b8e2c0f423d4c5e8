"""`python -m imp_ds`."""

from imp_ds.cli import main

if __name__ == "__main__":
    main()
