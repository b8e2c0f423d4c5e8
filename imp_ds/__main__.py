"""`python -m imp_ds`, and the command `imp_ds`. The launcher is watched before anything is imported that takes its time."""

from imp_ds.parallel.launcher_watch import watch_launcher
from imp_ds.terminal.interrupted import leave_interrupted


def main() -> None:
    """Run a command. After Ctrl-C it prints one line, and the exit code is 130."""
    try:
        watch_launcher()
        from imp_ds.cli import main as run

        run()
    except KeyboardInterrupt:
        leave_interrupted()


if __name__ == "__main__":
    main()
