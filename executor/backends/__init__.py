"""What makes containers: one small protocol, two implementations."""
