"""The command line: options, console, tables. Imports nothing heavy before it must."""
