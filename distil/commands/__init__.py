"""What may be typed: every flag once, files and variables that say them too, slips told, completion."""
