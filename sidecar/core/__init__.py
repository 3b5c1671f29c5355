"""Pure rules: no await, no clock, no I/O, standard library only."""
