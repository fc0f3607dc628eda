"""What strangers may hand to the commands: files, folders and arguments, each with the end that is promised for it."""
