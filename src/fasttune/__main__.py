"""`python -m fasttune`, for launchers: `accelerate launch -m fasttune run ...`."""

from fasttune.cli import main

if __name__ == "__main__":
    main()
