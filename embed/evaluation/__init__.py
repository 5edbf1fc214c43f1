"""What a descriptor finds and misses: planted edits and labelled pairs, scored at a stated precision."""
