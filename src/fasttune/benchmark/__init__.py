"""`fasttune bench`: compare the speed of fasttune with other programs on this machine."""
