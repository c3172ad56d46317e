"""What is looked for in a text: its language, its repeats."""
