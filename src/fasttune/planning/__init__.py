"""From a config to the memory and time a run will take, before a model is loaded."""
