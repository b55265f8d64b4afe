"""The agents: how they are reached, what their answers may look like, who is on the team."""
