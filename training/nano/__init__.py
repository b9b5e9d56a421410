"""The recipe of the nano checkpoint: speech, codec, language model, evaluation, export."""
