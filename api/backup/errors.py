"""What is wrong with a backup, in one line."""


class BackupError(Exception):
    """The file can not be used: truncated, damaged, of a newer format, or no backup at all."""
