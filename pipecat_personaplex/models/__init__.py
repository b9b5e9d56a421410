"""The model, as plain modules: all streaming state is an argument."""
