"""The command line: one module and one function for each command."""
