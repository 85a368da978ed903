"""One file per command: its work, from files to files, callable from Python."""
