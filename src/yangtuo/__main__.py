"""`python -m yangtuo` is the `yangtuo` command."""

from yangtuo.cli import main

if __name__ == "__main__":
    main()
