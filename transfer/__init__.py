"""What the commands are made of; docs/architecture.md says which module does what."""
