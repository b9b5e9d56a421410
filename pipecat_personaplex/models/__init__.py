"""The models as plain modules. All streaming state is an argument."""
