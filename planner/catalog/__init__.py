"""The only readers of data/, of user files and of the model hub."""
