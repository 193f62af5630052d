"""Proves that an image serves what it says: puppet, transcripts, server, guard and checks."""
