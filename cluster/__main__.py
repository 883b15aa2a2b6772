"""`python -m cluster` is `lipsum-tune`."""

from cluster.cli import main

if __name__ == "__main__":
    main()
