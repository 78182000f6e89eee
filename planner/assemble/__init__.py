"""From what was typed or pasted to questions and deployments of the core: shared by command line and dashboard."""
