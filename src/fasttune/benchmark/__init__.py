"""From a config to figures: several programs take the same training's steps in turns."""
