"""`neardup`, the operator's command."""
