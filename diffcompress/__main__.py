"""`python -m diffcompress`, which is also what torchrun starts."""

from diffcompress.cli.app import main

if __name__ == "__main__":
    main()
