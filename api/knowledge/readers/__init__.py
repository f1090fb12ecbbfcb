"""What each kind of file becomes: Markdown. Run in a process of its own, see `parse_process`."""
