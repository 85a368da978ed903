"""Benchmarks: programs that write rows, and the tables that are made of the rows."""
