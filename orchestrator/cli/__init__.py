"""The command line: options in, text or JSON out. What is done is done on the floors below."""
