"""A run on paper: the memory and time that it would take, and what would make it fit."""
