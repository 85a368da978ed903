"""One file per command: what it does, from files to files, callable from Python."""
