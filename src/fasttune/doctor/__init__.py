"""`fasttune doctor`: check the machine and the libraries."""
