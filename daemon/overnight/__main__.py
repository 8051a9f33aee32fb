"""`python -m overnight`."""

from overnight.cli.main import entry

if __name__ == "__main__":
    entry()
