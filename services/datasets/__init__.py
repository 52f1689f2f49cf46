"""Published data sets: what they are, under which terms, and how their files become volumes."""
