"""`python -m imp_ds`, and the command `imp_ds`. The launcher is watched before anything is imported that takes its time."""

from imp_ds.parallel.launcher_watch import watch_launcher


def main() -> None:
    """Run a command."""
    watch_launcher()
    from imp_ds.cli import main as run

    run()


if __name__ == "__main__":
    main()
