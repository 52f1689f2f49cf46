"""What is done to one chunk, one file per stage."""
