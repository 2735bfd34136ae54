"""Write answers behind what was read: one row or many."""
