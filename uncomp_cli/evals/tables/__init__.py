"""From outcomes to tables, notes and the data of pictures."""
