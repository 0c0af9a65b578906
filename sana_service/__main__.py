"""`python -m sana_service` is the `sana` command."""

from sana_service.cli import main

if __name__ == "__main__":
    main()
