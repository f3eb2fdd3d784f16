"""Imported first by the server of seeds: what it imports next would else print notices between the progress bars."""

from paperkit.command.cli import silence_libraries

silence_libraries()
