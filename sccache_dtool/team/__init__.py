"""One command by many tasks on many hosts: one leads, the others do pieces of its work."""
