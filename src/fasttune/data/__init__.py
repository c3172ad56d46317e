"""From files and the Hub to checked rows, and how they are divided."""
