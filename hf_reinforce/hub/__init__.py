"""Reinforced datasets on the Hugging Face Hub and in folders: load and publish."""
