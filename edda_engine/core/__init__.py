"""Pure decisions: history in, what to do out. No I/O, no clock, no randomness, no threads."""
