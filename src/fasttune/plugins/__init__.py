"""The contract: what a plugin provides, how plugins are found and told apart."""
