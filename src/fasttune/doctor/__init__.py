"""What a machine needs for all of it, checked one by one."""
