"""`python -m overnight`, and the console script."""

from overnight import interrupts


def entry() -> None:
    """Console script. The rest is imported here, where Ctrl-C has been seen to: it takes a while."""
    interrupts.end_silently()
    from overnight.cli.main import entry as run

    run()


if __name__ == "__main__":
    entry()
