"""`python -m tuning` is `lipsum-tune`."""

from tuning.cli import main

if __name__ == "__main__":
    main()
