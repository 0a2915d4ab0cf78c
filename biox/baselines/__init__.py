"""What the bridge is compared with: other ways to move a task to a modality without labels."""
