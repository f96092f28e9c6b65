"""Labelled files, a room for each kind; `bertkin.tasks.reading` is the door."""
