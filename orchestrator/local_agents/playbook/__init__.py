"""The honest offline team: reads a goal, recognises the factor and its arms, writes a sound experiment. No model."""
