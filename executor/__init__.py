"""One experiment in one throwaway container."""
